"""Walks templates: versions, labels and annotations, and their instantiation as a deployment object."""

import json

from brokkr_broker_client.models import (
    AddAnnotationRequest,
    CreateTemplateRequest,
    TemplateInstantiationRequest,
    UpdateTemplateRequest,
)
from brokkr_broker_client.types import UNSET

from talk import call

CONTENT = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {{ name }}\n"
SCHEMA = json.dumps({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})


def new(name, content=CONTENT, schema=SCHEMA):
    return CreateTemplateRequest(
        name=name, template_content=content, parameters_schema=schema, description="walked"
    )


def walk(scene):
    admin, agent, generator = scene.admin, scene.agent, scene.generator
    # Use a separate stack, so that the walk's agent does not serve its objects.
    stack = scene.new_stack("templated")
    call(201, "stacks_add_label", stack, client=generator, body="kind:templated")

    made = call(201, "create_template", client=generator, body=new(f"template-{scene.tag}"))
    assert (made.version, made.generator_id) == (1, scene.generator_id)
    shared = call(201, "create_template", client=admin, body=new(f"shared-{scene.tag}"))
    assert shared.generator_id in (None, UNSET)
    for body, code in (
        (new("x", content="{{ open"), "invalid_template_syntax"),
        (new("x", schema='{"type": 1}'), "invalid_parameters_schema"),
    ):
        assert call(400, "create_template", client=generator, body=body).code == code
    assert call(403, "list_templates", client=agent).code == "templates_not_accessible"
    listed = [t.id for t in call(200, "list_templates", client=generator)]
    assert made.id in listed and shared.id in listed
    assert call(200, "get_template", made.id, client=generator).template_content == CONTENT

    call(201, "templates_add_label", made.id, client=generator, body="kind:templated")
    assert call(400, "templates_add_label", made.id, client=generator, body="two words").code == "invalid_label"
    assert [x.label for x in call(200, "templates_list_labels", made.id, client=generator)] == ["kind:templated"]
    pair = AddAnnotationRequest(key="team", value="a")
    call(201, "templates_add_annotation", made.id, client=generator, body=pair)
    marks = call(200, "templates_list_annotations", made.id, client=generator)
    assert [(x.key, x.value) for x in marks] == [("team", "a")]

    asked = TemplateInstantiationRequest(template_id=made.id, parameters={"name": "walked"})
    refused = call(422, "instantiate_template", stack, client=generator, body=asked)
    assert refused.code == "template_stack_mismatch"
    assert refused.details.additional_properties["missing_annotations"] == [["team", "a"]]
    call(204, "templates_remove_annotation", made.id, "team", client=generator)
    rendered = call(201, "instantiate_template", stack, client=generator, body=asked)
    assert rendered.yaml_content == CONTENT.replace("{{ name }}", "walked")
    wrong = TemplateInstantiationRequest(template_id=made.id, parameters={"name": 7})
    assert call(400, "instantiate_template", stack, client=generator, body=wrong).code == "invalid_parameters"
    call(204, "templates_remove_label", made.id, "kind:templated", client=generator)

    body = UpdateTemplateRequest(template_content=CONTENT + "# more\n", parameters_schema=SCHEMA)
    second = call(200, "update_template", made.id, client=generator, body=body)
    assert (second.version, second.name, second.description) == (2, made.name, "walked") and second.id != made.id
    assert call(403, "delete_template", shared.id, client=generator).code == "template_not_owned"
    for template in (made, second):
        call(204, "delete_template", template.id, client=generator)
    call(204, "delete_template", shared.id, client=admin)
    assert call(404, "get_template", made.id, client=generator).code == "template_not_found"
    call(204, "delete_stack", stack, client=generator)
