//! Templates: versions, labels and annotations, and making an object from a template.

use std::sync::Arc;

use brokkr_client::types;
use serde_json::json;

use crate::walk::scene::Scene;

const CONTENT: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {{ name }}\n";
const SCHEMA: &str =
    r#"{"type":"object","properties":{"name":{"type":"string"}},"required":["name"]}"#;

fn new(name: String, content: &str, schema: &str) -> types::CreateTemplateRequest {
    types::CreateTemplateRequest {
        name,
        description: Some("walked".to_owned()),
        template_content: content.to_owned(),
        parameters_schema: schema.to_owned(),
    }
}

pub(crate) async fn walk(scene: Arc<Scene>) {
    let (admin, agent, generator) = (&scene.admin, &scene.agent, &scene.generator);
    // A separate stack, because the walk's agent must not serve it.
    let stack = scene.new_stack("templated").await;
    ok!(
        generator,
        201,
        stacks_add_label.id(stack).body("kind:templated")
    );

    let body = new(scene.name("template"), CONTENT, SCHEMA);
    let made = ok!(generator, 201, create_template.body(body));
    assert_eq!(
        (made.version, made.generator_id),
        (1, Some(scene.generator_id))
    );
    let shared = ok!(
        admin,
        201,
        create_template.body(new(scene.name("shared"), CONTENT, SCHEMA))
    );
    assert_eq!(shared.generator_id, None);
    let bad = new(scene.name("bad"), "{{ open", SCHEMA);
    let code = refused!(generator, 400, create_template.body(bad));
    assert_eq!(code, "invalid_template_syntax");
    let bad = new(scene.name("bad"), CONTENT, r#"{"type": 1}"#);
    let code = refused!(generator, 400, create_template.body(bad));
    assert_eq!(code, "invalid_parameters_schema");
    assert_eq!(
        refused!(agent, 403, list_templates),
        "templates_not_accessible"
    );
    let listed = ok!(generator, 200, list_templates);
    assert!(
        [made.id, shared.id]
            .iter()
            .all(|id| listed.iter().any(|t| t.id == *id))
    );
    assert_eq!(
        ok!(generator, 200, get_template.id(made.id)).template_content,
        CONTENT
    );

    ok!(
        generator,
        201,
        templates_add_label.id(made.id).body("kind:templated")
    );
    let code = refused!(
        generator,
        400,
        templates_add_label.id(made.id).body("two words")
    );
    assert_eq!(code, "invalid_label");
    assert_eq!(
        ok!(generator, 200, templates_list_labels.id(made.id)).len(),
        1
    );
    let pair = types::AddAnnotationRequest {
        key: "team".to_owned(),
        value: "a".to_owned(),
    };
    ok!(
        generator,
        201,
        templates_add_annotation.id(made.id).body(pair)
    );
    assert_eq!(
        ok!(generator, 200, templates_list_annotations.id(made.id)).len(),
        1
    );

    let asked = |parameters| types::TemplateInstantiationRequest {
        template_id: made.id,
        parameters,
    };
    let good = asked(json!({ "name": "walked" }));
    let code = refused!(
        generator,
        422,
        instantiate_template.stack_id(stack).body(good.clone())
    );
    assert_eq!(code, "template_stack_mismatch");
    ok!(
        generator,
        204,
        templates_remove_annotation.id(made.id).key("team")
    );
    let rendered = ok!(
        generator,
        201,
        instantiate_template.stack_id(stack).body(good)
    );
    assert_eq!(
        rendered.yaml_content,
        CONTENT.replace("{{ name }}", "walked")
    );
    let wrong = asked(json!({ "name": 7 }));
    let code = refused!(
        generator,
        400,
        instantiate_template.stack_id(stack).body(wrong)
    );
    assert_eq!(code, "invalid_parameters");
    ok!(
        generator,
        204,
        templates_remove_label.id(made.id).label("kind:templated")
    );

    let body = types::UpdateTemplateRequest {
        description: None,
        template_content: format!("{CONTENT}# more\n"),
        parameters_schema: SCHEMA.to_owned(),
    };
    let second = ok!(generator, 200, update_template.id(made.id).body(body));
    assert_eq!(
        (second.version, second.description.as_deref()),
        (2, Some("walked"))
    );
    assert_ne!(second.id, made.id);
    let code = refused!(generator, 403, delete_template.id(shared.id));
    assert_eq!(code, "template_not_owned");
    for (who, template) in [(generator, &made), (generator, &second), (admin, &shared)] {
        ok!(who, 204, delete_template.id(template.id));
    }
    assert_eq!(
        refused!(generator, 404, get_template.id(made.id)),
        "template_not_found"
    );
    ok!(generator, 204, delete_stack.id(stack));
}
