-- Work orders, what they are for (targets, labels, annotations), and the log of those that ended. And how a broker hears
-- that a PAK has died elsewhere.

-- due_at: when an order becomes pending again by itself, whatever the reason: its retry is due, or its claim is stale. One
-- column for both, so that one end of one index says when there is next something to do.
CREATE TABLE work_orders (
    id                    uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now(),
    work_type             varchar(50) NOT NULL,
    yaml_content          text NOT NULL,
    status                varchar(20) NOT NULL DEFAULT 'PENDING'
                          CONSTRAINT work_orders_status CHECK (status IN ('PENDING', 'CLAIMED', 'RETRY_PENDING')),
    claimed_by            uuid CONSTRAINT work_orders_claimed_by_fkey REFERENCES agents (id) ON DELETE SET NULL,
    claimed_at            timestamptz,
    claim_timeout_seconds integer NOT NULL CONSTRAINT work_orders_claim_timeout CHECK (claim_timeout_seconds > 0),
    max_retries           integer NOT NULL CONSTRAINT work_orders_max_retries CHECK (max_retries >= 0),
    retry_count           integer NOT NULL DEFAULT 0,
    backoff_seconds       integer NOT NULL CONSTRAINT work_orders_backoff CHECK (backoff_seconds > 0),
    next_retry_after      timestamptz,
    last_error            text,
    last_error_at         timestamptz,
    due_at                timestamptz,
    CONSTRAINT work_orders_retries CHECK (retry_count BETWEEN 0 AND max_retries),
    CONSTRAINT work_orders_claim CHECK (status <> 'CLAIMED' OR (claimed_by IS NOT NULL AND claimed_at IS NOT NULL)),
    CONSTRAINT work_orders_due CHECK ((status = 'PENDING') = (due_at IS NULL))
);
CREATE INDEX work_orders_in_order ON work_orders (created_at, id);
CREATE INDEX work_orders_by_status ON work_orders (status, created_at, id);
CREATE INDEX work_orders_by_type ON work_orders (work_type, created_at, id);
CREATE INDEX work_orders_by_claimant ON work_orders (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE INDEX work_orders_by_due ON work_orders (due_at) WHERE due_at IS NOT NULL;

CREATE TRIGGER work_orders_updated_at BEFORE UPDATE ON work_orders FOR EACH ROW EXECUTE FUNCTION set_updated_at();

-- Targets, labels and annotations are written with their order, so their created_at is its own: their indexes give the
-- oldest orders of an agent, or of a label that everybody has, without sorting them all.
CREATE TABLE work_order_targets (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at    timestamptz NOT NULL DEFAULT now(),
    work_order_id uuid NOT NULL CONSTRAINT work_order_targets_work_order_id_fkey
                  REFERENCES work_orders (id) ON DELETE CASCADE,
    agent_id      uuid NOT NULL CONSTRAINT work_order_targets_agent_id_fkey REFERENCES agents (id) ON DELETE CASCADE,
    CONSTRAINT work_order_targets_work_order_id_agent_id_key UNIQUE (work_order_id, agent_id)
);
CREATE INDEX work_order_targets_by_agent ON work_order_targets (agent_id, created_at, work_order_id);

CREATE TABLE work_order_labels (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at    timestamptz NOT NULL DEFAULT now(),
    work_order_id uuid NOT NULL CONSTRAINT work_order_labels_work_order_id_fkey
                  REFERENCES work_orders (id) ON DELETE CASCADE,
    label         varchar(64) NOT NULL,
    CONSTRAINT work_order_labels_work_order_id_label_key UNIQUE (work_order_id, label)
);
CREATE INDEX work_order_labels_by_label ON work_order_labels (label, created_at, work_order_id);

CREATE TABLE work_order_annotations (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at    timestamptz NOT NULL DEFAULT now(),
    work_order_id uuid NOT NULL CONSTRAINT work_order_annotations_work_order_id_fkey
                  REFERENCES work_orders (id) ON DELETE CASCADE,
    key           varchar(64) NOT NULL,
    value         varchar(64) NOT NULL,
    CONSTRAINT work_order_annotations_work_order_id_key_value_key UNIQUE (work_order_id, key, value)
);
CREATE INDEX work_order_annotations_by_pair ON work_order_annotations (key, value, created_at, work_order_id);

-- One row for each order that ended, with the order's id. Never evicted.
CREATE TABLE work_order_log (
    id                uuid PRIMARY KEY,
    work_type         varchar(50) NOT NULL,
    created_at        timestamptz NOT NULL,
    claimed_at        timestamptz,
    claimed_by        uuid CONSTRAINT work_order_log_claimed_by_fkey REFERENCES agents (id) ON DELETE SET NULL,
    completed_at      timestamptz NOT NULL DEFAULT now(),
    success           boolean NOT NULL,
    retries_attempted integer NOT NULL,
    result_message    text,
    yaml_content      text NOT NULL
);
CREATE INDEX work_order_log_in_order ON work_order_log (completed_at, id);
CREATE INDEX work_order_log_by_agent ON work_order_log (claimed_by, completed_at, id);
CREATE INDEX work_order_log_by_type ON work_order_log (work_type, completed_at, id);
CREATE INDEX work_order_log_by_success ON work_order_log (success, completed_at, id);

-- A broker remembers for a while who holds which PAK. This number rises with every PAK that dies, in the transaction that
-- kills it and whoever does it (another broker, a command, a person with psql): what was read under an older number is not
-- believed. Deferred to the commit, after all other locks have been taken: the row is everybody's, and held for that moment
-- only.
ALTER TABLE brokkr_meta ADD COLUMN credentials_epoch bigint NOT NULL DEFAULT 0;

CREATE FUNCTION raise_credentials_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('UPDATE %I.brokkr_meta SET credentials_epoch = credentials_epoch + 1', TG_TABLE_SCHEMA);
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER admin_role_credentials AFTER UPDATE OF pak_hash ON admin_role
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION raise_credentials_epoch();
CREATE CONSTRAINT TRIGGER agents_credentials AFTER DELETE OR UPDATE OF pak_hash, deleted_at ON agents
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION raise_credentials_epoch();
CREATE CONSTRAINT TRIGGER generators_credentials AFTER DELETE OR UPDATE OF pak_hash, deleted_at ON generators
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION raise_credentials_epoch();
