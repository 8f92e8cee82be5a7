-- Diagnostics that the admin asks an agent for, what agents report about the health of what they applied, and two more
-- ways to look into the audit log.

-- One request, one answer. Ends by itself: the sweep makes a pending one expired and a claimed one failed once
-- expires_at has passed, and removes what has ended.
CREATE TABLE diagnostic_requests (
    id                   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at           timestamptz NOT NULL DEFAULT now(),
    agent_id             uuid NOT NULL CONSTRAINT diagnostic_requests_agent_id_fkey
                         REFERENCES agents (id) ON DELETE CASCADE,
    deployment_object_id uuid NOT NULL CONSTRAINT diagnostic_requests_deployment_object_id_fkey
                         REFERENCES deployment_objects (id) ON DELETE CASCADE,
    status               varchar(20) NOT NULL DEFAULT 'pending'
                         CHECK (status IN ('pending', 'claimed', 'completed', 'failed', 'expired')),
    requested_by         varchar(255),
    claimed_at           timestamptz,
    completed_at         timestamptz,
    expires_at           timestamptz NOT NULL
);
CREATE INDEX diagnostic_requests_pending ON diagnostic_requests (agent_id, created_at, id) WHERE status = 'pending';
CREATE INDEX diagnostic_requests_open ON diagnostic_requests (expires_at) WHERE status IN ('pending', 'claimed');
CREATE INDEX diagnostic_requests_ended ON diagnostic_requests (created_at)
    WHERE status IN ('completed', 'failed', 'expired');

CREATE TABLE diagnostic_results (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at   timestamptz NOT NULL DEFAULT now(),
    request_id   uuid NOT NULL CONSTRAINT diagnostic_results_request_id_key UNIQUE
                 CONSTRAINT diagnostic_results_request_id_fkey REFERENCES diagnostic_requests (id) ON DELETE CASCADE,
    pod_statuses text NOT NULL,
    events       text NOT NULL,
    log_tails    text,
    collected_at timestamptz NOT NULL
);

-- Every agent reports every object it has applied about once a minute. No index has a column that an unchanged status
-- leaves different, so such a report rewrites its row in place (a HOT update).
CREATE TABLE deployment_health (
    id                   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at           timestamptz NOT NULL DEFAULT now(),
    updated_at           timestamptz NOT NULL DEFAULT now(),
    agent_id             uuid NOT NULL CONSTRAINT deployment_health_agent_id_fkey
                         REFERENCES agents (id) ON DELETE CASCADE,
    deployment_object_id uuid NOT NULL CONSTRAINT deployment_health_deployment_object_id_fkey
                         REFERENCES deployment_objects (id) ON DELETE CASCADE,
    status               varchar(20) NOT NULL CONSTRAINT deployment_health_status_check
                         CHECK (status IN ('healthy', 'degraded', 'failing', 'unknown')),
    summary              text,
    checked_at           timestamptz NOT NULL,
    -- The object first: the views of an object and of a stack begin there.
    CONSTRAINT deployment_health_agent_id_deployment_object_id_key UNIQUE (deployment_object_id, agent_id)
) WITH (fillfactor = 70);
CREATE INDEX deployment_health_unwell ON deployment_health (agent_id, status) WHERE status IN ('degraded', 'failing');
CREATE INDEX deployment_health_by_created_at ON deployment_health (created_at);

CREATE TRIGGER deployment_health_updated_at BEFORE UPDATE ON deployment_health
    FOR EACH ROW EXECUTE FUNCTION set_updated_at();

-- "What happened to this one?" and "what did this one do?", asked by the id alone.
CREATE INDEX audit_log_by_resource_id ON audit_log (resource_id, timestamp) WHERE resource_id IS NOT NULL;
CREATE INDEX audit_log_by_actor_id ON audit_log (actor_id, timestamp) WHERE actor_id IS NOT NULL;
