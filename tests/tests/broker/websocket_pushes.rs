//! Pushes to connected agents: their target state has changed.

use brokkr_tests::Socket;
use brokkr_tests::api_fixture::{Served, World, id, ids};
use serde_json::json;
use std::time::Duration;

#[test]
fn an_agent_is_told_of_its_targets() {
    let world = World::new();
    let (agent, other, generator) = (world.agent("a"), world.agent("b"), world.generator("g"));
    world.register(&agent, &generator);
    world.register(&other, &generator);
    let stack = world.stack(&generator);
    let (mut socket, mut not_meant) = (world.connect(&agent), world.connect(&other));
    world.target(&agent, &stack);
    let target = socket.expect("target_changed");
    assert_eq!(target["agent_id"], agent.id);
    assert_eq!(target["stack_id"], stack);
    let listed = agent.get_json(&format!("/agents/{}/targets", agent.id));
    assert_eq!(vec![id(&target)], ids(&listed));

    let nil = "00000000-0000-0000-0000-000000000000";
    let register = format!("/generators/{}/register", generator.id);
    // Whether or not the agent was registered.
    for _ in 0..2 {
        agent
            .call("DELETE", &register, Some(&json!({})))
            .expect(204);
        let nudge = socket.expect("target_changed");
        assert_eq!(
            nudge,
            json!({ "id": nil, "agent_id": agent.id, "stack_id": nil })
        );
    }
    not_meant.silent(Duration::from_millis(200));
    assert_eq!(world.connection(&agent).unwrap()["messages_out"], 3);
}

#[test]
fn fault_39_a_new_object_is_told_to_every_agent_that_serves_the_stack() {
    let world = World::new();
    let (generator, stranger) = (world.generator("g"), world.generator("s"));
    let agents: Vec<_> = ["target", "label", "annotation", "unregistered", "nothing"]
        .iter()
        .map(|name| world.agent(name))
        .collect();
    let stack = world.stack(&generator);
    for agent in &agents {
        world.register(
            agent,
            if agent.name.starts_with("unreg") {
                &stranger
            } else {
                &generator
            },
        );
    }
    world.target(&agents[0], &stack);
    world.label_agent(&agents[1], "env:prod");
    world.label_agent(&agents[3], "env:prod");
    world.label_stack(&stack, "env:prod");
    let annotation = |key: &str, id: &str| json!({ key: id, "key": "region", "value": "north" });
    let path = format!("/agents/{}/annotations", agents[2].id);
    world.create(&path, &annotation("agent_id", &agents[2].id));
    let path = format!("/stacks/{stack}/annotations");
    world.create(&path, &annotation("stack_id", &stack));

    let mut open: Vec<Socket> = agents.iter().map(|agent| world.connect(agent)).collect();
    let object = world.object(&stack, "a: 1");
    for socket in &mut open[..3] {
        let told = socket.expect("stack_changed");
        assert_eq!(told["id"], stack);
        assert_eq!(told["generator_id"], generator.id);
        assert!(told["deleted_at"].is_null());
    }
    for socket in &mut open[3..] {
        socket.silent(Duration::from_millis(200));
    }
    assert_eq!(world.target_state(&agents[1], "")[0], id(&object));

    // The deletion is pushed to the agents that served the stack, which then find its marker.
    world.remove(&format!("/stacks/{stack}"));
    for socket in &mut open[..3] {
        let told = socket.expect("stack_changed");
        assert_eq!(told["id"], stack);
        assert!(told["deleted_at"].is_string());
    }
    for socket in &mut open[3..] {
        socket.silent(Duration::from_millis(200));
    }
}

#[test]
fn fault_40_an_object_from_a_template_is_told_like_any_other() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let template = json!({
        "name": "t", "template_content": "a: {{ n }}", "parameters_schema": "{\"type\":\"object\"}",
    });
    let template = served.generator.create("/templates", &template);
    let mut socket = world.connect(agent);
    let path = format!("/stacks/{}/deployment-objects/from-template", served.stack);
    let body = json!({ "template_id": template["id"], "parameters": { "n": 1 } });
    let object = served.generator.create(&path, &body);
    assert_eq!(socket.expect("stack_changed")["id"], served.stack);
    assert_eq!(served.state(""), [id(&object)]);
}

#[test]
fn a_changed_match_is_pushed_to_the_agents_it_concerns() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    world.register(&agent, &generator);
    let stack = world.stack(&generator);
    let mut socket = world.connect(&agent);
    world.label_agent(&agent, "here");
    let _ = socket.expect("target_changed");
    world.label_stack(&stack, "here");
    assert_eq!(socket.expect("stack_changed")["id"], stack);
    world.remove(&format!("/stacks/{stack}/labels/here"));
    assert_eq!(socket.expect("stack_changed")["id"], stack);
    world.remove(&format!("/agents/{}/labels/here", agent.id));
    let _ = socket.expect("target_changed");
    world.target(&agent, &stack);
    let _ = socket.expect("target_changed");
    world.remove(&format!("/generators/{}", generator.id));
    let _ = socket.expect("target_changed");
}

#[test]
fn a_work_order_is_told_to_the_agents_it_names() {
    let world = World::new();
    let (agent, other) = (world.agent("a"), world.agent("b"));
    let (mut socket, mut not_meant) = (world.connect(&agent), world.connect(&other));
    let order = world.create(
            "/work-orders",
            &json!({ "work_type": "build", "yaml_content": "a: 1", "targeting": { "agent_ids": [agent.id] } }),
        );
    assert_eq!(socket.expect("work_order"), order);
    not_meant.silent(Duration::from_millis(200));
}
