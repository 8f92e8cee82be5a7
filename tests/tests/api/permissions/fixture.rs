//! The principals, and the data on which the rows of the matrix act.

use super::matrix;
use brokkr_tests::Api;
use brokkr_tests::api_fixture::{Party, World, id, unique};

/// The principals in the order of the table's columns. The last two always get 401.
pub(crate) const PRINCIPALS: [&str; 7] = [
    "admin",
    "self",
    "other agent",
    "owner",
    "other generator",
    "no PAK",
    "bad PAK",
];

/// The data on which the table's rows act, made anew after every row that changed it.
pub(crate) struct Fixture {
    pub(crate) names: Vec<(&'static str, String)>,
    pub(crate) callers: Vec<Api>,
}

impl Fixture {
    pub(crate) fn new(world: &World) -> Self {
        let (own, other) = (world.agent("self"), world.agent("other"));
        let (owner, stranger, free) = (
            world.generator("owner"),
            world.generator("stranger"),
            world.generator("free"),
        );
        world.register(&own, &owner);
        let (stack, bare) = (world.stack(&owner), world.stack(&owner));
        world.target(&own, &stack);
        let object = id(&world.object(&stack, "a: 1"));
        let event = id(&world.report(&own, &object, "FAILURE").expect(201).json());
        world.label_agent(&own, "here");
        world.label_stack(&stack, "here");
        let annotation =
            |kind: &str, id: &str| serde_json::json!({ kind: id, "key": "here", "value": "v" });
        world.create(
            &format!("/agents/{}/annotations", own.id),
            &annotation("agent_id", &own.id),
        );
        world.create(
            &format!("/stacks/{stack}/annotations"),
            &annotation("stack_id", &stack),
        );
        let caller = |party: &Party| party.api.clone();
        let callers = vec![
            world.admin.clone(),
            caller(&own),
            caller(&other),
            caller(&owner),
            caller(&stranger),
            world.anonymous(),
            world.with_pak("brokkr_BRnobody_11111111111111111111111111111111"),
        ];
        let scene = matrix::Scene {
            world,
            own: &own,
            owner: &owner,
            stranger: &stranger,
            object: &object,
        };
        let mut names = matrix::names(&scene);
        names.extend([
            ("self", own.id),
            ("self.name", own.name),
            ("other", other.id),
            ("gen", owner.id),
            ("free", free.id),
            ("stack", stack),
            ("bare", bare),
            ("object", object),
            ("event", event),
        ]);
        Self { names, callers }
    }

    pub(crate) fn fill(&self, text: &str) -> String {
        let mut text = text.replace("{new}", &format!("new-{}", unique()));
        for (name, value) in &self.names {
            text = text.replace(&format!("{{{name}}}"), value);
        }
        text
    }
}
