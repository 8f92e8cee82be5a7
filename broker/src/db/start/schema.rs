//! Inspects the database and the schema before a start writes to them.

use brokkr_tenant::SchemaName;
use brokkr_tenant::instance_protocol::ROLE_PREFIX;
use postgres::Client;

use super::error::{StartError, racing};

/// Reads everything that a start must know beforehand in one row. Runs while `search_path` is still `pg_catalog`.
const LOOK: &str = "SELECT current_database()::text, current_setting('server_encoding'), current_user::text, \
        quote_ident(current_user), quote_ident(wanted.name), n.oid IS NOT NULL, \
        pg_get_userbyid(n.nspowner)::text, \
        coalesce(has_schema_privilege(n.oid, 'USAGE'), false), \
        coalesce(has_schema_privilege(n.oid, 'CREATE'), false), \
        EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = '__diesel_schema_migrations') \
            AND NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'brokkr_meta'), \
        t.owner, coalesce(t.readable, true) \
    FROM (VALUES ($1::text)) AS wanted (name) \
    LEFT JOIN pg_namespace n ON n.nspname = wanted.name \
    LEFT JOIN LATERAL (SELECT pg_get_userbyid(c.relowner)::text AS owner, \
            has_table_privilege(c.oid, 'SELECT') AS readable \
        FROM pg_class c WHERE c.relnamespace = n.oid AND NOT pg_has_role(c.relowner, 'USAGE') \
            AND c.relname IN ('brokkr_lock', 'brokkr_meta', 'refinery_schema_history') \
        ORDER BY 2 LIMIT 1) t ON true";

/// The schema as found, and the rights of the role in it.
pub(super) struct SchemaState {
    name: String,
    quoted: String,
    role: String,
    quoted_role: String,
    /// The owner, if the schema exists.
    owner: Option<String>,
    may_use: bool,
    may_create: bool,
    /// Owner of its tables if that is another role, and true when the broker's role may read them.
    tables: Option<(String, bool)>,
}

impl SchemaState {
    /// Inspects the schema. Refuses a database or a schema in which the broker can never work.
    pub(super) fn look(client: &mut Client, name: &SchemaName) -> Result<Self, StartError> {
        let row = client.query_one(LOOK, &[&name.as_str()])?;
        let (database, encoding): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if encoding != "UTF8" {
            return Err(StartError::Configuration(format!(
                "database \"{database}\" has encoding {encoding}; Brokkr needs UTF8: create it with ENCODING 'UTF8' TEMPLATE template0"
            )));
        }
        if row.try_get(9)? {
            return Err(StartError::Configuration(
                "this schema was made by Brokkr 0.9 (it holds __diesel_schema_migrations); choose another schema, its tables are left as they are".to_owned(),
            ));
        }
        let there: bool = row.try_get(5)?;
        let owner: Option<String> = row.try_get(6)?;
        let tables: Option<String> = row.try_get(10)?;
        let readable: bool = row.try_get(11)?;
        let schema = SchemaState {
            name: name.to_string(),
            role: row.try_get(2)?,
            quoted_role: row.try_get(3)?,
            quoted: row.try_get(4)?,
            owner: owner.filter(|_| there),
            may_use: row.try_get(7)?,
            may_create: row.try_get(8)?,
            tables: tables.map(|owner| (owner, readable)),
        };
        if let Some(owner) = &schema.owner
            && !schema.may_use
        {
            return Err(schema.not_ours(owner));
        }
        if let Some((owner, false)) = &schema.tables {
            return Err(schema.tables_not_ours(owner));
        }
        Ok(schema)
    }

    pub(super) fn is_there(&self) -> bool {
        self.owner.is_some()
    }

    /// Refuses a schema that the role may read, but in which it may create nothing.
    pub(super) fn writable(&self) -> Result<(), StartError> {
        match (&self.owner, &self.tables) {
            (Some(owner), _) if !self.may_create => Err(self.not_ours(owner)),
            (_, Some((owner, _))) => Err(self.tables_not_ours(owner)),
            _ => Ok(()),
        }
    }

    /// Creates the schema if it is missing. Looks first, because `CREATE SCHEMA IF NOT EXISTS` fails without the right
    /// to create even when the schema exists.
    pub(super) fn ensure(&self, client: &mut Client) -> Result<(), StartError> {
        if self.is_there() {
            return Ok(());
        }
        racing(|| {
            const THERE: &str = "SELECT 1 FROM pg_namespace WHERE nspname = $1";
            match client.query_opt(THERE, &[&self.name])? {
                Some(_) => Ok(()),
                None => client.batch_execute(&format!("CREATE SCHEMA {}", self.quoted)),
            }
        })
    }

    fn not_ours(&self, owner: &str) -> StartError {
        if owner.starts_with(ROLE_PREFIX) {
            return StartError::Configuration(format!(
                "role \"{}\" may not use schema \"{}\", which belongs to its tenant's own role {owner}: take the URL of that role, in \
                 STATE_DIR/tenants/NAME.url of the supervisor (BROKKR__DATABASE__URL_FILE)",
                self.role, self.name
            ));
        }
        StartError::Configuration(format!(
            "role \"{}\" may not use schema \"{}\", which belongs to role \"{owner}\": ALTER SCHEMA {} OWNER TO {}",
            self.role, self.name, self.quoted, self.quoted_role
        ))
    }

    fn tables_not_ours(&self, owner: &str) -> StartError {
        StartError::Configuration(format!(
            "role \"{}\" may not use the tables of schema \"{}\", which belong to role \"{owner}\": ALTER TABLE … OWNER TO {} for each of them",
            self.role, self.name, self.quoted_role
        ))
    }
}
