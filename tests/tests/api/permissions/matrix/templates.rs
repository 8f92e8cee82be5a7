//! Rows for templates and their instantiation.

use super::*;
use brokkr_tests::api_fixture::{id, unique};
use serde_json::json;

const TLA: &str = "403 templates_not_accessible";
const TNA: &str = "403 template_not_accessible";
const TNO: &str = "403 template_not_owned";
const NEW: &str = r#"{"template_content":"a: 1","parameters_schema":"{}"}"#;

#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    ("GET /templates", "", "[StackTemplate]", ["200", TLA, TLA, "200", "200"]),
    ("POST /templates", r#"{"name":"{new}","template_content":"a: 1","parameters_schema":"{}"}"#, "StackTemplate",
        ["201", TLA, TLA, "201", "201"]),
    ("GET /templates/{template}", "", "StackTemplate", ["200", TNA, TNA, "200", TNA]),
    ("GET /templates/{system}", "", "StackTemplate", ["200", TNA, TNA, "200", "200"]),
    ("PUT /templates/{template}", NEW, "StackTemplate", ["200", TNO, TNO, "200", TNO]),
    ("PUT /templates/{system}", NEW, "StackTemplate", ["200", TNO, TNO, TNO, TNO]),
    ("DELETE /templates/{template}", "", "", ["204", TNO, TNO, "204", TNO]),
    ("DELETE /templates/{system}", "", "", ["204", TNO, TNO, TNO, TNO]),
    ("GET /templates/{template}/labels", "", "[TemplateLabel]", ["200", TNA, TNA, "200", TNA]),
    ("GET /templates/{system}/labels", "", "[TemplateLabel]", ["200", TNA, TNA, "200", "200"]),
    ("POST /templates/{template}/labels", r#""new""#, "TemplateLabel", ["201", TNO, TNO, "201", TNO]),
    ("POST /templates/{system}/labels", r#""new""#, "TemplateLabel", ["201", TNO, TNO, TNO, TNO]),
    ("DELETE /templates/{template}/labels/here", "", "", ["204", TNO, TNO, "204", TNO]),
    ("DELETE /templates/{system}/labels/here", "", "", ["204", TNO, TNO, TNO, TNO]),
    ("GET /templates/{template}/annotations", "", "[TemplateAnnotation]", ["200", TNA, TNA, "200", TNA]),
    ("GET /templates/{system}/annotations", "", "[TemplateAnnotation]", ["200", TNA, TNA, "200", "200"]),
    ("POST /templates/{template}/annotations", r#"{"key":"new","value":"v"}"#, "TemplateAnnotation",
        ["201", TNO, TNO, "201", TNO]),
    ("POST /templates/{system}/annotations", r#"{"key":"new","value":"v"}"#, "TemplateAnnotation",
        ["201", TNO, TNO, TNO, TNO]),
    ("DELETE /templates/{template}/annotations/here", "", "", ["204", TNO, TNO, "204", TNO]),
    ("DELETE /templates/{system}/annotations/here", "", "", ["204", TNO, TNO, TNO, TNO]),
    ("POST /stacks/{stack}/deployment-objects/from-template", r#"{"template_id":"{template}","parameters":{}}"#,
        "DeploymentObject", ["201", SNO, SNO, "201", SNO]),
    ("POST /stacks/{stack}/deployment-objects/from-template", r#"{"template_id":"{system}","parameters":{}}"#,
        "DeploymentObject", ["201", SNO, SNO, "201", SNO]),
    ("POST /stacks/{stack}/deployment-objects/from-template", r#"{"template_id":"{strange}","parameters":{}}"#,
        "DeploymentObject", ["201", SNO, SNO, TNA, SNO]),
];

/// Makes a template of the owner and a system template, both with labels that the stack has too, and a template of the
/// other generator.
pub(crate) fn names(scene: &Scene<'_>) -> Names {
    let body = |name: &str| {
        let name = format!("{name}-{}", unique());
        json!({ "name": name, "template_content": "a: 1", "parameters_schema": "{}" })
    };
    let admin = &scene.world.admin;
    let mut names = Vec::new();
    for (name, api) in [
        ("template", &scene.owner.api),
        ("system", admin),
        ("strange", &scene.stranger.api),
    ] {
        let template = id(&api.create("/templates", &body(name)));
        if name != "strange" {
            let path = format!("/templates/{template}");
            let mark = json!({ "key": "here", "value": "v" });
            admin.create(&format!("{path}/labels"), &json!("here"));
            admin.create(&format!("{path}/annotations"), &mark);
        }
        names.push((name, template));
    }
    names
}
