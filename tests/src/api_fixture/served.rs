//! The usual scene: an agent that serves a stack.
#![allow(missing_docs, reason = "names and types say it")]

use crate::api_fixture::{Party, World, id};

/// An agent registered with a generator and targeted at one of its stacks.
pub struct Served {
    pub world: World,
    pub agent: Party,
    pub generator: Party,
    pub stack: String,
}

impl Served {
    #[allow(clippy::new_without_default, reason = "it starts a process")]
    pub fn new() -> Self {
        Self::of(World::new())
    }

    pub fn of(world: World) -> Self {
        let (agent, generator) = (world.agent("a"), world.generator("g"));
        world.register(&agent, &generator);
        let stack = world.stack(&generator);
        world.target(&agent, &stack);
        Self {
            world,
            agent,
            generator,
            stack,
        }
    }

    pub fn object(&self, yaml: &str) -> String {
        id(&self.world.object(&self.stack, yaml))
    }

    pub fn state(&self, query: &str) -> Vec<String> {
        self.world.target_state(&self.agent, query)
    }

    pub fn report(&self, object: &str, status: &str) {
        self.world.report(&self.agent, object, status).expect(201);
    }
}
