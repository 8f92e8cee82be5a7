-- What every later migration stands on: who the administrator is, who the generators are, what was done and by whom.
--
-- Rules for every file in this folder. Nothing names a schema: the tenant's own is the only one on the search path.
-- No extensions. A function or trigger reaches a table only through TG_TABLE_SCHEMA, because it may run in a session
-- whose search path is another one. A file that has been released is never changed; a new one is added.

-- One row. A migration that an older broker cannot live with raises the number to its own version; a broker that does
-- not know that version refuses to start. An additive migration leaves it alone, so rolling back past it works.
CREATE TABLE brokkr_meta (
    only_row           boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    min_reader_version integer NOT NULL,
    wants_events       boolean NOT NULL DEFAULT false
);
INSERT INTO brokkr_meta (min_reader_version) VALUES (1);

-- The marker of a finished first start. Written in the same transaction as the administrator.
CREATE TABLE app_initialization (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    initialized_at timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

CREATE FUNCTION refuse_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are never deleted', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;

-- The administrator: one row, never deleted, so a tenant cannot be locked out by a slip.
CREATE TABLE admin_role (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    only_row   boolean NOT NULL DEFAULT true UNIQUE CHECK (only_row),
    pak_hash   text NOT NULL CHECK (pak_hash ~ '^[0-9a-f]{64}$')
);
CREATE TRIGGER admin_role_updated_at BEFORE UPDATE ON admin_role FOR EACH ROW EXECUTE FUNCTION set_updated_at();
CREATE TRIGGER admin_role_no_delete BEFORE DELETE ON admin_role FOR EACH ROW EXECUTE FUNCTION refuse_delete();

-- Generators. Names are unique among the living only. `pak_hash` is a key among the living too, but not declared
-- unique: admin-generator carries the administrator's hash, and a rotation must not fail on somebody else's row.
CREATE TABLE generators (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    deleted_at     timestamptz,
    name           varchar(255) NOT NULL,
    description    text,
    pak_hash       text,
    last_active_at timestamptz,
    is_active      boolean NOT NULL DEFAULT true,
    is_system      boolean NOT NULL DEFAULT false
);
CREATE UNIQUE INDEX unique_generator_name ON generators (name) WHERE deleted_at IS NULL;
CREATE INDEX generators_live_pak_hash ON generators (pak_hash) WHERE deleted_at IS NULL;
CREATE TRIGGER generators_updated_at BEFORE UPDATE ON generators FOR EACH ROW EXECUTE FUNCTION set_updated_at();

-- What was done, by whom. Written in the transaction that did it; kept for broker.audit_log_retention_days.
CREATE TABLE audit_log (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    timestamp     timestamptz NOT NULL DEFAULT now(),
    actor_type    varchar(20) NOT NULL CHECK (actor_type IN ('admin', 'agent', 'generator', 'system')),
    actor_id      uuid,
    action        varchar(100) NOT NULL,
    resource_type varchar(50) NOT NULL,
    resource_id   uuid,
    details       jsonb,
    ip_address    text,
    user_agent    text,
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_log_by_timestamp ON audit_log (timestamp);
CREATE INDEX audit_log_by_created_at ON audit_log (created_at);
CREATE INDEX audit_log_by_action ON audit_log (action text_pattern_ops, timestamp);
CREATE INDEX audit_log_by_actor ON audit_log (actor_type, actor_id, timestamp);
CREATE INDEX audit_log_by_resource ON audit_log (resource_type, resource_id, timestamp);

-- Events on their way to whoever subscribed, written in the transaction that caused them. Rows are written only while
-- brokkr_meta.wants_events says that somebody reads them, so that without a subscriber nothing piles up here.
CREATE TABLE event_outbox (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    event_type varchar(100) NOT NULL,
    data       jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX event_outbox_by_created_at ON event_outbox (created_at);
