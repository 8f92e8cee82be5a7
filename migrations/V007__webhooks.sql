-- Webhooks: who wants to hear of what (subscriptions), and what each of them is still to be told (deliveries).

-- url and auth_header are sealed with the tenant's webhook key (broker/src/webhook/crypto.rs); nobody reads them here.
-- lane says which subscriptions share an endpoint without saying which: deliveries to one host queue for its few places.
CREATE TABLE webhook_subscriptions (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    name            varchar(255) NOT NULL,
    url             bytea NOT NULL,
    auth_header     bytea,
    lane            uuid NOT NULL DEFAULT gen_random_uuid(),
    event_types     text[] NOT NULL,
    filters         jsonb,
    target_labels   text[],
    enabled         boolean NOT NULL DEFAULT true,
    max_retries     integer NOT NULL DEFAULT 5 CHECK (max_retries BETWEEN 0 AND 10),
    timeout_seconds integer NOT NULL DEFAULT 30 CHECK (timeout_seconds BETWEEN 1 AND 300),
    created_by      varchar(255)
);
CREATE INDEX webhook_subscriptions_in_order ON webhook_subscriptions (created_at, id);

CREATE TRIGGER webhook_subscriptions_updated_at BEFORE UPDATE ON webhook_subscriptions
    FOR EACH ROW EXECUTE FUNCTION set_updated_at();

-- claim is a new value each time a delivery is taken: whoever comes back with another one was too slow, and changes
-- nothing. target_labels are the subscription's when the event was turned into deliveries; labels_key finds equal ones
-- by an index whose entries stay small. position is the order in which deliveries are taken. It is not created_at, because
-- only the indexes for taking shall offer that order: the planner would walk another from its old end, past everything that is
-- somebody else's.
CREATE TABLE webhook_deliveries (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    position        bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    subscription_id uuid NOT NULL CONSTRAINT webhook_deliveries_subscription_id_fkey
                    REFERENCES webhook_subscriptions (id) ON DELETE CASCADE,
    event_type      varchar(100) NOT NULL,
    event_id        uuid NOT NULL,
    payload         text NOT NULL,
    target_labels   text[],
    for_broker      boolean NOT NULL GENERATED ALWAYS AS (coalesce(cardinality(target_labels), 0) = 0) STORED,
    labels_key      bigint GENERATED ALWAYS AS (hash_array_extended(target_labels, 0)) STORED,
    status          varchar(20) NOT NULL DEFAULT 'pending'
                    CHECK (status IN ('pending', 'acquired', 'success', 'failed', 'dead')),
    acquired_by     uuid CONSTRAINT webhook_deliveries_acquired_by_fkey REFERENCES agents (id) ON DELETE SET NULL,
    acquired_until  timestamptz,
    claim           uuid,
    attempts        integer NOT NULL DEFAULT 0,
    last_attempt_at timestamptz,
    next_retry_at   timestamptz,
    last_error      text,
    completed_at    timestamptz
);
-- The lists of the API, newest first.
CREATE INDEX webhook_deliveries_in_order ON webhook_deliveries (created_at, id);
CREATE INDEX webhook_deliveries_by_status ON webhook_deliveries (status, created_at, id);
CREATE INDEX webhook_deliveries_of_subscription ON webhook_deliveries (subscription_id, created_at, id);
CREATE INDEX webhook_deliveries_of_subscription_by_status
    ON webhook_deliveries (subscription_id, status, created_at, id);
-- What can be taken, oldest first: by the broker, and by an agent with the labels.
CREATE INDEX webhook_deliveries_for_broker ON webhook_deliveries (subscription_id, position)
    WHERE status = 'pending' AND for_broker;
CREATE INDEX webhook_deliveries_for_agents ON webhook_deliveries (subscription_id, labels_key, position)
    WHERE status = 'pending' AND NOT for_broker;
-- What falls due by itself.
CREATE INDEX webhook_deliveries_claims ON webhook_deliveries (acquired_until) WHERE status = 'acquired';
CREATE INDEX webhook_deliveries_retries ON webhook_deliveries (next_retry_at) WHERE status = 'failed';
-- What is past its retention: what is over, and what no agent has fetched.
CREATE INDEX webhook_deliveries_finished ON webhook_deliveries (created_at) WHERE status IN ('success', 'dead');
CREATE INDEX webhook_deliveries_unfetched ON webhook_deliveries (created_at)
    WHERE status IN ('pending', 'failed') AND NOT for_broker;
