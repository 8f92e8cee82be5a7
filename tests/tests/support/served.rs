//! The usual scene: an agent that serves a stack.
#![allow(dead_code, reason = "each test file uses its part of it")]

use crate::world::{Party, World, id};

/// An agent registered with a generator and targeted at one of its stacks.
pub(crate) struct Served {
    pub(crate) world: World,
    pub(crate) agent: Party,
    pub(crate) generator: Party,
    pub(crate) stack: String,
}

impl Served {
    pub(crate) fn new() -> Self {
        Self::of(World::new())
    }

    pub(crate) fn of(world: World) -> Self {
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

    pub(crate) fn object(&self, yaml: &str) -> String {
        id(&self.world.object(&self.stack, yaml))
    }

    pub(crate) fn state(&self, query: &str) -> Vec<String> {
        self.world.target_state(&self.agent, query)
    }

    pub(crate) fn report(&self, object: &str, status: &str) {
        let _ = self.world.report(&self.agent, object, status).expect(201);
    }
}
