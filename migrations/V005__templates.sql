-- Templates, what they are matched by (labels, annotations), and which object was rendered from which.

-- A change is a new row with the next version; the rows before it stay. No generator: the system's, readable by all.
CREATE TABLE stack_templates (
    id                uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now(),
    deleted_at        timestamptz,
    generator_id      uuid CONSTRAINT stack_templates_generator_id_fkey REFERENCES generators (id) ON DELETE CASCADE,
    name              varchar(255) NOT NULL,
    description       text,
    version           integer NOT NULL,
    template_content  text NOT NULL,
    parameters_schema text NOT NULL,
    checksum          text NOT NULL
);
-- The nil id stands for no generator, so that the system's versions are unique too. Also finds the highest version.
CREATE UNIQUE INDEX unique_template_version
    ON stack_templates (coalesce(generator_id, '00000000-0000-0000-0000-000000000000'::uuid), name, version)
    WHERE deleted_at IS NULL;
CREATE INDEX stack_templates_live_in_order ON stack_templates (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX stack_templates_live_of_generator ON stack_templates (generator_id, created_at, id)
    WHERE deleted_at IS NULL;

CREATE TRIGGER stack_templates_updated_at BEFORE UPDATE ON stack_templates
    FOR EACH ROW EXECUTE FUNCTION set_updated_at();

CREATE TABLE template_labels (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at  timestamptz NOT NULL DEFAULT now(),
    template_id uuid NOT NULL CONSTRAINT template_labels_template_id_fkey
                REFERENCES stack_templates (id) ON DELETE CASCADE,
    label       varchar(64) NOT NULL,
    CONSTRAINT template_labels_template_id_label_key UNIQUE (template_id, label)
);

CREATE TABLE template_annotations (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at  timestamptz NOT NULL DEFAULT now(),
    template_id uuid NOT NULL CONSTRAINT template_annotations_template_id_fkey
                REFERENCES stack_templates (id) ON DELETE CASCADE,
    key         varchar(64) NOT NULL,
    value       varchar(64) NOT NULL,
    CONSTRAINT template_annotations_template_id_key_key UNIQUE (template_id, key)
);

-- Where an object comes from, written with it. The version is kept beside the id so that it can be read without the row.
CREATE TABLE rendered_objects (
    deployment_object_id uuid PRIMARY KEY CONSTRAINT rendered_objects_deployment_object_id_fkey
                         REFERENCES deployment_objects (id) ON DELETE CASCADE,
    template_id          uuid NOT NULL CONSTRAINT rendered_objects_template_id_fkey
                         REFERENCES stack_templates (id) ON DELETE CASCADE,
    template_version     integer NOT NULL,
    parameters           text NOT NULL,
    created_at           timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX rendered_objects_by_template ON rendered_objects (template_id);
