//! Who may do what: one row per operation, one column per principal, run from one table.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

#[path = "support/shapes.rs"]
mod shapes;
#[path = "support/world.rs"]
mod world;

use brokkr_tests::Api;
use serde_json::Value;
use world::{Party, World, id, refused, unique};

const AR: &str = "403 admin_required";
const APM: &str = "403 agent_pak_mismatch";
const SNO: &str = "403 stack_not_owned";
const GNO: &str = "403 generator_not_owned";
const GR: &str = "403 generator_required";
const TCD: &str = "403 target_create_denied";
const ANR: &str = "403 agent_not_registered";
const NA: &str = "403 not_authorized";
const FORBIDDEN: &str = "403 forbidden";
const SNA: &str = "403 stack_not_accessible";
const SLD: &str = "403 stacks_list_denied";
const SCD: &str = "403 stack_create_denied";

/// The principals, in the order of the table's columns. The last two are always 401.
const PRINCIPALS: [&str; 7] = [
    "admin",
    "self",
    "other agent",
    "owner",
    "other generator",
    "no PAK",
    "bad PAK",
];

/// Method and path, body (none when empty), shape of a success, and the answers to admin, self, other agent, owning
/// generator, other generator. Names in braces are the fixture's.
type Row = (&'static str, &'static str, &'static str, [&'static str; 5]);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    ("POST /auth/pak", "", "AuthResponse", ["200", "200", "200", "200", "200"]),

    ("GET /agents", "", "[Agent]", ["200", GR, GR, "200", "200"]),
    ("POST /agents", r#"{"name":"{new}","cluster_name":"c"}"#, "CreateAgentResponse", ["201", AR, AR, AR, AR]),
    ("GET /agents/?name={self.name}&cluster_name=c", "", "Agent", ["200", "200", APM, APM, APM]),
    ("GET /agents/{self}", "", "Agent", ["200", "200", APM, APM, APM]),
    ("PUT /agents/{self}", r#"{"status":"ACTIVE"}"#, "Agent", ["200", "200", APM, APM, APM]),
    ("DELETE /agents/{self}", "", "", ["204", AR, AR, AR, AR]),
    ("GET /agents/{self}/labels", "", "[AgentLabel]", ["200", "200", APM, APM, APM]),
    ("GET /agents/{self}/annotations", "", "[AgentAnnotation]", ["200", "200", APM, APM, APM]),
    ("GET /agents/{self}/targets", "", "[AgentTarget]", ["200", "200", APM, APM, APM]),
    ("GET /agents/{self}/events", "", "[AgentEvent]", ["200", "200", APM, APM, APM]),
    ("GET /agents/{self}/stacks", "", "[Stack]", ["200", "200", APM, APM, APM]),
    ("GET /agents/{self}/target-state", "", "[DeploymentObject]", ["200", "200", APM, APM, APM]),
    ("GET /agents/{self}/registrations", "", "[AgentGeneratorRegistration]", ["200", "200", APM, APM, APM]),
    ("POST /agents/{self}/events",
        r#"{"agent_id":"{self}","deployment_object_id":"{object}","event_type":"DEPLOY","status":"SUCCESS"}"#,
        "AgentEvent", ["201", "201", APM, APM, APM]),
    ("POST /agents/{self}/labels", r#"{"agent_id":"{self}","label":"new"}"#, "AgentLabel", ["201", AR, AR, AR, AR]),
    ("DELETE /agents/{self}/labels/here", "", "", ["204", AR, AR, AR, AR]),
    ("POST /agents/{self}/annotations", r#"{"agent_id":"{self}","key":"new","value":"v"}"#, "AgentAnnotation",
        ["201", AR, AR, AR, AR]),
    ("DELETE /agents/{self}/annotations/here", "", "", ["204", AR, AR, AR, AR]),
    ("POST /agents/{self}/targets", r#"{"agent_id":"{self}","stack_id":"{bare}"}"#, "AgentTarget",
        ["201", TCD, TCD, "201", "403 target_generator_mismatch"]),
    ("DELETE /agents/{self}/targets/{stack}", "", "", ["204", TCD, TCD, "204", "403 target_generator_mismatch"]),
    ("POST /agents/{other}/targets", r#"{"agent_id":"{other}","stack_id":"{bare}"}"#, "AgentTarget",
        [ANR, TCD, TCD, ANR, "403 target_generator_mismatch"]),
    ("DELETE /agents/{other}/targets/{stack}", "", "", [ANR, TCD, TCD, ANR, "403 target_generator_mismatch"]),
    ("POST /agents/{self}/heartbeat", "{}", "", [APM, "204", APM, APM, APM]),
    ("POST /agents/{self}/rotate-pak", "", "RotatedAgent", ["200", "200", APM, APM, APM]),
    ("GET /agent-events", "", "[AgentEvent]", ["200", AR, AR, AR, AR]),
    ("GET /agent-events/{event}", "", "AgentEvent", ["200", AR, AR, AR, AR]),

    ("GET /generators", "", "[Generator]", ["200", AR, AR, AR, AR]),
    ("POST /generators", r#"{"name":"{new}"}"#, "CreateGeneratorResponse", ["201", AR, AR, AR, AR]),
    ("GET /generators/{gen}", "", "Generator", ["200", GNO, GNO, "200", GNO]),
    ("PUT /generators/{gen}",
        r#"{"id":"{gen}","created_at":"2024-01-01T00:00:00Z","updated_at":"2024-01-01T00:00:00Z","name":"{new}","is_active":true,"is_system":false}"#,
        "Generator", ["200", GNO, GNO, "200", GNO]),
    ("DELETE /generators/{gen}", "", "", ["204", GNO, GNO, "204", GNO]),
    ("POST /generators/{gen}/rotate-pak", "", "CreateGeneratorResponse", ["201", GNO, GNO, "201", GNO]),
    ("POST /generators/{free}/register", r#"{"agent_id":"{self}"}"#, "AgentGeneratorRegistration",
        ["201", "201", "201", FORBIDDEN, FORBIDDEN]),
    ("DELETE /generators/{gen}/register", r#"{"agent_id":"{self}"}"#, "", ["204", "204", "204", FORBIDDEN, FORBIDDEN]),
    ("GET /generators/{gen}/registered-agents", "", "[AgentGeneratorRegistration]", ["200", NA, NA, "200", NA]),

    ("GET /stacks", "", "[Stack]", ["200", SLD, SLD, "200", "200"]),
    ("POST /stacks", r#"{"name":"{new}","generator_id":"{gen}"}"#, "Stack",
        ["201", SCD, SCD, "201", "403 stack_generator_mismatch"]),
    ("GET /stacks/{stack}", "", "Stack", ["200", SNO, SNO, "200", SNO]),
    ("PUT /stacks/{stack}",
        r#"{"id":"{stack}","created_at":"2024-01-01T00:00:00Z","updated_at":"2024-01-01T00:00:00Z","name":"{new}","generator_id":"{gen}"}"#,
        "Stack", ["200", SNO, SNO, "200", SNO]),
    ("DELETE /stacks/{stack}", "", "", ["204", SNO, SNO, "204", SNO]),
    ("GET /stacks/{stack}/deployment-objects", "", "[DeploymentObject]", ["200", SNO, SNO, "200", SNO]),
    ("POST /stacks/{stack}/deployment-objects", r#"{"yaml_content":"a: 1"}"#, "DeploymentObject",
        ["201", SNO, SNO, "201", SNO]),
    ("GET /stacks/{stack}/labels", "", "[StackLabel]", ["200", "200", SNA, "200", SNA]),
    ("GET /stacks/{stack}/annotations", "", "[StackAnnotation]", ["200", "200", SNA, "200", SNA]),
    ("POST /stacks/{stack}/labels", r#""new""#, "StackLabel", ["201", SNO, SNO, "201", SNO]),
    ("DELETE /stacks/{stack}/labels/here", "", "", ["204", SNO, SNO, "204", SNO]),
    ("POST /stacks/{stack}/annotations", r#"{"stack_id":"{stack}","key":"new","value":"v"}"#, "StackAnnotation",
        ["201", SNO, SNO, "201", SNO]),
    ("DELETE /stacks/{stack}/annotations/here", "", "", ["204", SNO, SNO, "204", SNO]),
    ("GET /deployment-objects/{object}", "", "DeploymentObject",
        ["200", "200", "403 agent_not_associated", "200", "403 generator_not_associated"]),
];

/// What the table's rows act on. Made anew after every row that changed something.
struct Fixture {
    names: Vec<(&'static str, String)>,
    callers: Vec<Api>,
}

impl Fixture {
    fn new(world: &World) -> Self {
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
        let _ = world
            .admin
            .post(
                &format!("/agents/{}/annotations", own.id),
                &annotation("agent_id", &own.id),
            )
            .expect(201);
        let _ = world
            .admin
            .post(
                &format!("/stacks/{stack}/annotations"),
                &annotation("stack_id", &stack),
            )
            .expect(201);
        let caller = |party: &Party| party.api.clone();
        let callers = vec![
            world.admin.clone(),
            caller(&own),
            caller(&other),
            caller(&owner),
            caller(&stranger),
            world.nobody(),
            world
                .admin
                .with_pak("brokkr_BRnobody_11111111111111111111111111111111"),
        ];
        let names = vec![
            ("self", own.id),
            ("self.name", own.name),
            ("other", other.id),
            ("gen", owner.id),
            ("free", free.id),
            ("stack", stack),
            ("bare", bare),
            ("object", object),
            ("event", event),
        ];
        Self { names, callers }
    }

    fn fill(&self, text: &str) -> String {
        let mut text = text.replace("{new}", &format!("new-{}", unique()));
        for (name, value) in &self.names {
            text = text.replace(&format!("{{{name}}}"), value);
        }
        text
    }
}

#[test]
fn every_operation_answers_every_principal_as_the_matrix_says() {
    let world = World::new();
    let mut fixture = Fixture::new(&world);
    let mut rows = 0;
    for (operation, body, shape, answers) in TABLE {
        for (column, principal) in PRINCIPALS.iter().enumerate() {
            let wanted = answers.get(column).copied().unwrap_or("401 unauthorized");
            let (method, path) = operation.split_once(' ').unwrap();
            let body: Option<Value> =
                (!body.is_empty()).then(|| serde_json::from_str(&fixture.fill(body)).unwrap());
            let answer = fixture.callers[column].call(method, &fixture.fill(path), body.as_ref());
            let (status, code) = wanted.split_once(' ').unwrap_or((wanted, ""));
            let context = format!("{operation} as {principal}: {}", answer.text());
            assert_eq!(answer.status.to_string(), status, "{context}");
            if code.is_empty() {
                if shape.is_empty() {
                    assert!(answer.body.is_empty(), "{context}");
                } else {
                    shapes::check(shape, &answer.json());
                }
            } else {
                let _ = refused(&answer, answer.status, code);
            }
            if code.is_empty() && method != "GET" && *operation != "POST /auth/pak" {
                fixture = Fixture::new(&world);
            }
            rows += 1;
        }
    }
    println!("permission matrix: {rows} rows");
    assert_eq!(rows, TABLE.len() * PRINCIPALS.len());
}

#[test]
fn an_operation_of_a_later_change_is_not_found_whoever_asks() {
    let world = World::new();
    for path in [
        "/templates",
        "/work-orders",
        "/webhooks",
        "/fleet",
        "/admin/audit-logs",
        "/paks",
        "/diagnostics",
        "/stacks/",
        "/nothing",
        "/agents/x/y/z",
    ] {
        for api in [&world.admin, &world.nobody()] {
            let _ = refused(&api.get(path), 404, "not_found");
        }
    }
}

#[test]
fn a_wrong_method_is_told_only_to_who_may_ask() {
    let world = World::new();
    let _ = refused(
        &world.nobody().call("PATCH", "/agents", None),
        401,
        "unauthorized",
    );
    let answer = world.admin.call("PATCH", "/agents", None);
    let _ = refused(&answer, 405, "method_not_allowed");
    let allowed = answer.header("allow").unwrap_or_default();
    assert!(
        allowed.contains("GET") && allowed.contains("POST"),
        "{allowed}"
    );
}
