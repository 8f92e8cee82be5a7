//! The expected state: the tenant's data by the rules of association alone.

use brokkr_tests::{Api, Response};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

pub(crate) const AGENTS: usize = 4;
const LABELS: [&str; 3] = ["env:prod", "env:test", "region:eu"];
/// The largest number of live stacks; beyond it a stack is deleted first.
const STACKS: usize = 8;

/// A principal with an id and a PAK.
pub(crate) struct Party {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) api: Api,
}

/// The tenant's data.
pub(crate) struct Model {
    admin: Api,
    pub(crate) agents: Vec<Party>,
    labels_of: Vec<BTreeSet<&'static str>>,
    pairs_of: Vec<BTreeSet<&'static str>>,
    consents: Vec<BTreeSet<usize>>,
    generators: Vec<Party>,
    stacks: BTreeMap<String, Stack>,
    counts: BTreeMap<&'static str, u32>,
    serial: u32,
}

#[derive(Debug, Default)]
struct Stack {
    generator: usize,
    labels: BTreeSet<&'static str>,
    /// Values of the annotation `team`, at most one at a time.
    pairs: BTreeSet<&'static str>,
    targets: BTreeSet<usize>,
    /// The checksum of the newest object, unless that is a marker.
    newest: Option<String>,
    deleted: bool,
    history: Vec<String>,
}

impl Model {
    /// Makes active agents that agree to serve some of the generators, without stacks.
    pub(crate) fn new(admin: Api, rng: &mut fastrand::Rng) -> Self {
        let generators = (0..2).map(|n| {
            party(
                &admin,
                "/generators",
                &json!({ "name": format!("g{n}") }),
                "generator",
                "pak",
            )
        });
        let generators: Vec<Party> = generators.collect();
        let agents: Vec<Party> = (0..AGENTS)
            .map(|n| {
                let body = json!({ "name": format!("a{n}"), "cluster_name": "c" });
                let agent = party(&admin, "/agents", &body, "agent", "initial_pak");
                admin
                    .put(
                        &format!("/agents/{}", agent.id),
                        &json!({ "status": "ACTIVE" }),
                    )
                    .expect(200);
                agent
            })
            .collect();
        let mut model = Self {
            admin,
            labels_of: vec![BTreeSet::new(); AGENTS],
            pairs_of: vec![BTreeSet::new(); AGENTS],
            consents: vec![BTreeSet::new(); AGENTS],
            agents,
            generators,
            stacks: BTreeMap::new(),
            counts: BTreeMap::new(),
            serial: 0,
        };
        for agent in 0..AGENTS {
            model.consent(agent, rng.usize(..2));
            model.label_agent(agent, LABELS[rng.usize(..LABELS.len())]);
        }
        model
    }

    /// Returns the checksums that an agent should have applied, by stack.
    pub(crate) fn wanted(&self, agent: usize) -> BTreeMap<String, String> {
        self.stacks
            .iter()
            .filter(|(id, _)| self.serves(agent, id))
            .filter_map(|(id, stack)| Some((id.clone(), stack.newest.clone()?)))
            .collect()
    }

    /// Returns true when an agent should have an object of this stack in its cluster.
    pub(crate) fn should_have(&self, agent: usize, stack: &str) -> bool {
        self.serves(agent, stack) && self.stacks[stack].newest.is_some()
    }

    /// Describes a stack and an agent for a failed assertion.
    pub(crate) fn describe(&self, agent: usize, stack: &str) -> String {
        format!(
            "{:#?}\nagent: labels {:?}, team {:?}, consents {:?}",
            self.stacks[stack], self.labels_of[agent], self.pairs_of[agent], self.consents[agent]
        )
    }

    pub(crate) fn summary(&self) -> String {
        let counts: Vec<String> = self
            .counts
            .iter()
            .map(|(what, n)| format!("{what} {n}"))
            .collect();
        counts.join(", ")
    }

    fn serves(&self, agent: usize, stack: &str) -> bool {
        let stack = &self.stacks[stack];
        let matched = !stack.labels.is_disjoint(&self.labels_of[agent])
            || !stack.pairs.is_disjoint(&self.pairs_of[agent]);
        let consent = self.consents[agent].contains(&stack.generator);
        !stack.deleted && (stack.targets.contains(&agent) || (matched && consent))
    }

    pub(crate) fn change(&mut self, rng: &mut fastrand::Rng) {
        let live: Vec<String> = self
            .stacks
            .iter()
            .filter(|(_, stack)| !stack.deleted)
            .map(|(id, _)| id.clone())
            .collect();
        let agent = rng.usize(..AGENTS);
        let label = LABELS[rng.usize(..LABELS.len())];
        if live.len() < 3 || (live.len() < STACKS && rng.u8(..) < 30) {
            return self.create_stack(rng);
        }
        let stack = live[rng.usize(..live.len())].clone();
        match rng.u32(0..100) {
            0..35 => self.submit(&stack, rng),
            35..40 => self.submit_marker(&stack),
            40..55 => self.label_stack(&stack, label),
            55..62 => self.annotate_stack(&stack, rng),
            62..72 => self.label_agent(agent, label),
            72..77 => self.annotate_agent(agent, rng),
            77..84 => self.target(agent, &stack),
            84..90 => self.consent(agent, rng.usize(..2)),
            _ => self.delete_stack(&stack),
        }
    }

    fn create_stack(&mut self, rng: &mut fastrand::Rng) {
        self.serial += 1;
        let name = format!("stack-{}", self.serial);
        let generator = rng.usize(..2);
        let body = json!({ "name": name, "generator_id": self.generators[generator].id });
        let answer = self.done("stack created", "POST", "/stacks", Some(&body), &[201, 409]);
        let id = if answer.status == 201 {
            answer.json()["id"].as_str().unwrap().to_owned()
        } else {
            // The stack was created by an attempt whose answer was lost.
            let all = self.done("", "GET", "/stacks", None, &[200]).json();
            let found = all
                .as_array()
                .unwrap()
                .iter()
                .find(|s| s["name"] == name.as_str());
            found.unwrap()["id"].as_str().unwrap().to_owned()
        };
        let stack = Stack {
            generator,
            ..Stack::default()
        };
        let _ = self.stacks.insert(id.clone(), stack);
        self.label_stack(&id, LABELS[rng.usize(..LABELS.len())]);
        self.submit(&id, rng);
    }

    fn submit(&mut self, stack: &str, rng: &mut fastrand::Rng) {
        let body = json!({ "yaml_content": format!("serial: {}", rng.u32(..)) });
        let path = format!("/stacks/{stack}/deployment-objects");
        let answer = self.done("object submitted", "POST", &path, Some(&body), &[201]);
        let checksum = answer.json()["yaml_checksum"].as_str().unwrap().to_owned();
        self.note(stack, "object");
        self.stack(stack).newest = Some(checksum);
    }

    fn submit_marker(&mut self, stack: &str) {
        let body = json!({ "yaml_content": "", "is_deletion_marker": true });
        let path = format!("/stacks/{stack}/deployment-objects");
        let _ = self.done("marker submitted", "POST", &path, Some(&body), &[201]);
        self.note(stack, "marker");
        self.stack(stack).newest = None;
    }

    /// Adds the label, or removes it where it is present.
    fn label_stack(&mut self, stack: &str, label: &'static str) {
        if self.stack(stack).labels.contains(label) {
            let path = format!("/stacks/{stack}/labels/{label}");
            let _ = self.done("label off a stack", "DELETE", &path, None, &[204, 404]);
            self.stack(stack).labels.remove(label);
        } else {
            let path = format!("/stacks/{stack}/labels");
            let _ = self.done(
                "label on a stack",
                "POST",
                &path,
                Some(&json!(label)),
                &[201, 409],
            );
            let _ = self.stack(stack).labels.insert(label);
        }
        self.note(stack, label);
    }

    fn annotate_stack(&mut self, stack: &str, rng: &mut fastrand::Rng) {
        let value = ["x", "y"][rng.usize(..2)];
        let path = format!("/stacks/{stack}/annotations");
        if self.stack(stack).pairs.is_empty() {
            let body = json!({ "stack_id": stack, "key": "team", "value": value });
            let _ = self.done(
                "annotation on a stack",
                "POST",
                &path,
                Some(&body),
                &[201, 409],
            );
            let _ = self.stack(stack).pairs.insert(value);
        } else {
            let path = format!("{path}/team");
            let _ = self.done("annotation off a stack", "DELETE", &path, None, &[204, 404]);
            self.stack(stack).pairs.clear();
        }
        self.note(stack, "team");
    }

    fn label_agent(&mut self, agent: usize, label: &'static str) {
        let path = format!("/agents/{}/labels", self.agents[agent].id);
        if self.labels_of[agent].contains(label) {
            let _ = self.done(
                "label off an agent",
                "DELETE",
                &format!("{path}/{label}"),
                None,
                &[204, 404],
            );
            self.labels_of[agent].remove(label);
        } else {
            let body = json!({ "agent_id": self.agents[agent].id, "label": label });
            let _ = self.done("label on an agent", "POST", &path, Some(&body), &[201, 409]);
            let _ = self.labels_of[agent].insert(label);
        }
    }

    fn annotate_agent(&mut self, agent: usize, rng: &mut fastrand::Rng) {
        let value = ["x", "y"][rng.usize(..2)];
        let path = format!("/agents/{}/annotations", self.agents[agent].id);
        if self.pairs_of[agent].is_empty() {
            let body = json!({ "agent_id": self.agents[agent].id, "key": "team", "value": value });
            let _ = self.done(
                "annotation on an agent",
                "POST",
                &path,
                Some(&body),
                &[201, 409],
            );
            let _ = self.pairs_of[agent].insert(value);
        } else {
            let _ = self.done(
                "annotation off an agent",
                "DELETE",
                &format!("{path}/team"),
                None,
                &[204, 404],
            );
            self.pairs_of[agent].clear();
        }
    }

    /// Adds the target or removes it; both need the agent's consent first.
    fn target(&mut self, agent: usize, stack: &str) {
        let generator = self.stack(stack).generator;
        if !self.consents[agent].contains(&generator) {
            return self.consent(agent, generator);
        }
        let id = self.agents[agent].id.clone();
        let path = format!("/agents/{id}/targets");
        if self.stack(stack).targets.contains(&agent) {
            let _ = self.done(
                "target removed",
                "DELETE",
                &format!("{path}/{stack}"),
                None,
                &[204, 404],
            );
            self.stack(stack).targets.remove(&agent);
        } else {
            let body = json!({ "agent_id": id, "stack_id": stack });
            let _ = self.done("target added", "POST", &path, Some(&body), &[201, 409]);
            let _ = self.stack(stack).targets.insert(agent);
        }
        self.note(stack, "target");
    }

    /// Adds the consent to a generator, or ends it and with it the agent's targets there.
    fn consent(&mut self, agent: usize, generator: usize) {
        let path = format!("/generators/{}/register", self.generators[generator].id);
        let body = json!({ "agent_id": self.agents[agent].id });
        if self.consents[agent].remove(&generator) {
            let _ = self.done("consent ended", "DELETE", &path, Some(&body), &[204]);
            for stack in self
                .stacks
                .values_mut()
                .filter(|s| s.generator == generator)
            {
                stack.targets.remove(&agent);
            }
        } else {
            let _ = self.done("consent given", "POST", &path, Some(&body), &[201, 409]);
            let _ = self.consents[agent].insert(generator);
        }
    }

    fn delete_stack(&mut self, stack: &str) {
        let _ = self.done(
            "stack deleted",
            "DELETE",
            &format!("/stacks/{stack}"),
            None,
            &[204, 404],
        );
        self.note(stack, "deleted");
        self.stack(stack).deleted = true;
    }

    fn stack(&mut self, id: &str) -> &mut Stack {
        self.stacks.get_mut(id).unwrap()
    }

    fn note(&mut self, stack: &str, what: &str) {
        self.stack(stack).history.push(what.to_owned());
    }

    /// Repeats a request until it is done, because the broker may be killed during it. The answer to the next attempt
    /// tells that an earlier attempt took effect.
    fn done(
        &mut self,
        what: &'static str,
        method: &str,
        path: &str,
        body: Option<&Value>,
        wanted: &[u16],
    ) -> Response {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            match self.admin.try_call(method, path, body) {
                Ok(answer) if wanted.contains(&answer.status) => {
                    if !what.is_empty() {
                        *self.counts.entry(what).or_default() += 1;
                    }
                    return answer;
                }
                Ok(answer) if answer.status == 503 => {}
                Ok(answer) => panic!("{method} {path}: {} {}", answer.status, answer.text()),
                Err(_) => {}
            }
            assert!(
                Instant::now() < until,
                "{method} {path}: no answer for 30 s"
            );
        }
    }
}

fn party(admin: &Api, path: &str, body: &Value, kind: &str, pak: &str) -> Party {
    let made = admin.create(path, body);
    Party {
        id: made[kind]["id"].as_str().unwrap().to_owned(),
        name: made[kind]["name"].as_str().unwrap().to_owned(),
        api: admin.with_pak(made[pak].as_str().unwrap()),
    }
}
