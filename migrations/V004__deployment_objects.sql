-- Deployment objects, what agents report about them (events), and who still has to hear of a deleted stack (departures).

-- One sequence for the whole schema. A writer holds its stack's row before it takes a number (store/objects.rs), so for
-- one stack numbers are handed out in the order of the commits and the highest never goes back.
CREATE TABLE deployment_objects (
    id                 uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    deleted_at         timestamptz,
    sequence_id        bigint GENERATED ALWAYS AS IDENTITY
                       CONSTRAINT deployment_objects_sequence_id_key UNIQUE,
    stack_id           uuid NOT NULL CONSTRAINT deployment_objects_stack_id_fkey
                       REFERENCES stacks (id) ON DELETE RESTRICT,
    yaml_content       text NOT NULL,
    yaml_checksum      text NOT NULL,
    submitted_at       timestamptz NOT NULL DEFAULT now(),
    is_deletion_marker boolean NOT NULL DEFAULT false
);
CREATE INDEX deployment_objects_live_of_stack ON deployment_objects (stack_id, sequence_id DESC)
    WHERE deleted_at IS NULL;

CREATE TRIGGER deployment_objects_updated_at BEFORE UPDATE ON deployment_objects
    FOR EACH ROW EXECUTE FUNCTION set_updated_at();

-- Objects are immutable: what an agent has applied must stay what it was. Only deleted_at may be set; markers are exempt.
CREATE FUNCTION refuse_object_update() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'deployment object % is immutable', OLD.id USING ERRCODE = 'integrity_constraint_violation';
END
$$;
CREATE TRIGGER deployment_objects_immutable
    BEFORE UPDATE OF id, created_at, stack_id, yaml_content, yaml_checksum, submitted_at, is_deletion_marker
    ON deployment_objects FOR EACH ROW WHEN (NOT OLD.is_deletion_marker) EXECUTE FUNCTION refuse_object_update();

-- success_digest is the SHA-256 of type, status and message of an event that reports success, else null: an agent that
-- repeats itself at every poll raises repeats and last_reported_at of one row instead of adding rows.
CREATE TABLE agent_events (
    id                   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at           timestamptz NOT NULL DEFAULT now(),
    updated_at           timestamptz NOT NULL DEFAULT now(),
    deleted_at           timestamptz,
    agent_id             uuid NOT NULL CONSTRAINT fk_agent REFERENCES agents (id) ON DELETE CASCADE,
    deployment_object_id uuid NOT NULL CONSTRAINT fk_deployment_object
                         REFERENCES deployment_objects (id) ON DELETE RESTRICT,
    event_type           varchar(50) NOT NULL,
    status               varchar(10) NOT NULL,
    message              text,
    success_digest       bytea,
    repeats              bigint NOT NULL DEFAULT 1,
    last_reported_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX agent_events_live_of_agent ON agent_events (agent_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX agent_events_in_order ON agent_events (created_at, id);
-- Also answers "has this agent applied this object?" for the incremental target state.
CREATE UNIQUE INDEX agent_events_one_success
    ON agent_events (agent_id, deployment_object_id, success_digest)
    WHERE deleted_at IS NULL AND success_digest IS NOT NULL;

CREATE TRIGGER agent_events_updated_at BEFORE UPDATE ON agent_events
    FOR EACH ROW EXECUTE FUNCTION set_updated_at();

-- A deleted stack's marker goes to every agent that served the stack at that moment, until the agent has answered it.
-- Rows stay after the answer: they also say that the agent may still report on the stack's objects.
CREATE TABLE stack_departures (
    agent_id             uuid NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    stack_id             uuid NOT NULL REFERENCES stacks (id) ON DELETE CASCADE,
    deployment_object_id uuid NOT NULL REFERENCES deployment_objects (id) ON DELETE CASCADE,
    answered_at          timestamptz,
    PRIMARY KEY (agent_id, stack_id)
);
CREATE INDEX stack_departures_unanswered ON stack_departures (agent_id, deployment_object_id)
    WHERE answered_at IS NULL;
