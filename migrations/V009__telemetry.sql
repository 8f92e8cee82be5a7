-- What agents see in their clusters: events and log lines, kept for six hours.
--
-- Rows come in batches, are never changed, and are read by stack, newest first. There are many of them, so each table has
-- the two indexes it is read and swept by, and no more: id is what the API shows, and nothing looks a row up by it; n orders
-- the rows of a batch. No foreign keys: each would lock the agent's row, which heartbeats write, and the stack's with every
-- batch, to guard rows that outlive neither by more than hours.

CREATE TABLE agent_k8s_events (
    id              uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at      timestamptz NOT NULL DEFAULT now(),
    agent_id        uuid NOT NULL,
    stack_id        uuid NOT NULL,
    observed_at     timestamptz NOT NULL,
    reason          text NOT NULL,
    message         text NOT NULL,
    event_type      text NOT NULL,
    source          text,
    involved_object jsonb NOT NULL,
    n               bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (stack_id, created_at, n)
);
CREATE INDEX agent_k8s_events_by_created_at ON agent_k8s_events (created_at);

CREATE TABLE agent_pod_logs (
    id         uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now(),
    agent_id   uuid NOT NULL,
    stack_id   uuid NOT NULL,
    namespace  text NOT NULL,
    pod        text NOT NULL,
    container  text NOT NULL,
    ts         timestamptz NOT NULL,
    line       text NOT NULL,
    n          bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (stack_id, created_at, n)
);
CREATE INDEX agent_pod_logs_by_created_at ON agent_pod_logs (created_at);
