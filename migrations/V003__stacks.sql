-- Stacks, what they are matched by (labels, annotations), and the agents explicitly told to serve them (targets).

CREATE TABLE stacks (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    deleted_at   timestamptz,
    name         varchar(255) NOT NULL,
    description  text,
    generator_id uuid NOT NULL CONSTRAINT stacks_generator_id_fkey REFERENCES generators (id) ON DELETE RESTRICT,
    -- For the foreign keys of labels and annotations, which carry their stack's generator.
    CONSTRAINT stacks_id_generator_id_key UNIQUE (id, generator_id)
);
CREATE UNIQUE INDEX unique_stack_name ON stacks (name) WHERE deleted_at IS NULL;
CREATE INDEX stacks_live_in_order ON stacks (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX stacks_live_of_generator ON stacks (generator_id, created_at, id) WHERE deleted_at IS NULL;

CREATE TRIGGER stacks_updated_at BEFORE UPDATE ON stacks FOR EACH ROW EXECUTE FUNCTION set_updated_at();

-- Labels and annotations carry their stack's generator: an agent is matched within the generators it is registered with, and
-- one index finds these at once, however many stacks of others have the same popular label.
CREATE TABLE stack_labels (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at   timestamptz NOT NULL DEFAULT now(),
    stack_id     uuid NOT NULL,
    generator_id uuid NOT NULL,
    label        varchar(64) NOT NULL,
    CONSTRAINT stack_labels_stack_id_label_key UNIQUE (stack_id, label),
    CONSTRAINT stack_labels_stack_id_fkey FOREIGN KEY (stack_id, generator_id) REFERENCES stacks (id, generator_id)
        ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX stack_labels_by_label ON stack_labels (generator_id, label, stack_id);

CREATE TABLE stack_annotations (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at   timestamptz NOT NULL DEFAULT now(),
    stack_id     uuid NOT NULL,
    generator_id uuid NOT NULL,
    key          varchar(64) NOT NULL,
    value        varchar(64) NOT NULL,
    CONSTRAINT unique_stack_annotation UNIQUE (stack_id, key),
    CONSTRAINT stack_annotations_stack_id_fkey FOREIGN KEY (stack_id, generator_id) REFERENCES stacks (id, generator_id)
        ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX stack_annotations_by_pair ON stack_annotations (generator_id, key, value, stack_id);

CREATE TABLE agent_targets (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now(),
    agent_id   uuid NOT NULL CONSTRAINT agent_targets_agent_id_fkey REFERENCES agents (id) ON DELETE CASCADE,
    stack_id   uuid NOT NULL CONSTRAINT agent_targets_stack_id_fkey REFERENCES stacks (id) ON DELETE CASCADE,
    CONSTRAINT unique_agent_stack UNIQUE (agent_id, stack_id)
);
CREATE INDEX agent_targets_by_stack ON agent_targets (stack_id, agent_id);
