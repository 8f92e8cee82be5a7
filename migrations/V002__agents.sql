-- Agents, what they are called by (labels, annotations), and which generators they consent to serve (registrations).

-- fillfactor: every heartbeat rewrites its agent's row. With room left on the page, and no index on a column a heartbeat
-- touches, the new version stays on the same page (a HOT update) and no index grows.
CREATE TABLE agents (
    id                 uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    deleted_at         timestamptz,
    name               varchar(255) NOT NULL,
    cluster_name       varchar(255) NOT NULL,
    status             varchar(50) NOT NULL DEFAULT 'INACTIVE',
    last_heartbeat     timestamptz,
    pak_hash           text,
    k8s_reachable      boolean,
    k8s_api_latency_ms integer,
    k8s_reported_at    timestamptz
) WITH (fillfactor = 70);

-- Names and credentials are unique among live rows only: a deleted agent's name can be taken again.
CREATE UNIQUE INDEX unique_agent_cluster ON agents (name, cluster_name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX agents_live_pak_hash ON agents (pak_hash) WHERE deleted_at IS NULL;
CREATE INDEX agents_live_in_order ON agents (created_at, id) WHERE deleted_at IS NULL;

CREATE TRIGGER agents_updated_at BEFORE UPDATE ON agents FOR EACH ROW EXECUTE FUNCTION set_updated_at();

CREATE TABLE agent_labels (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now(),
    agent_id   uuid NOT NULL CONSTRAINT fk_agent_labels_agent REFERENCES agents (id) ON DELETE CASCADE,
    label      varchar(64) NOT NULL,
    CONSTRAINT agent_labels_agent_id_label_key UNIQUE (agent_id, label)
);
CREATE INDEX agent_labels_by_label ON agent_labels (label, agent_id);

CREATE TABLE agent_annotations (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now(),
    agent_id   uuid NOT NULL CONSTRAINT fk_agent_annotations_agent REFERENCES agents (id) ON DELETE CASCADE,
    key        varchar(64) NOT NULL,
    value      varchar(64) NOT NULL,
    CONSTRAINT agent_annotations_agent_id_key_key UNIQUE (agent_id, key)
);
CREATE INDEX agent_annotations_by_pair ON agent_annotations (key, value, agent_id);

CREATE TABLE agent_generator_registrations (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    agent_id      uuid NOT NULL CONSTRAINT agent_generator_registrations_agent_id_fkey
                  REFERENCES agents (id) ON DELETE CASCADE,
    generator_id  uuid NOT NULL CONSTRAINT agent_generator_registrations_generator_id_fkey
                  REFERENCES generators (id) ON DELETE CASCADE,
    registered_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT agent_generator_registrations_agent_id_generator_id_key UNIQUE (agent_id, generator_id)
);
CREATE INDEX agent_generator_registrations_by_generator
    ON agent_generator_registrations (generator_id, registered_at, id);

-- The API's list of generators, and the one every agent is registered with.
CREATE INDEX generators_live_in_order ON generators (created_at, id) WHERE deleted_at IS NULL AND NOT is_system;
CREATE INDEX generators_live_system ON generators (created_at, id) WHERE deleted_at IS NULL AND is_system;
