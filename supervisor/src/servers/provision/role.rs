//! The names of the roles that the supervisor provisions.

use brokkr_tenant::{SchemaName, TenantName};
use sha2::{Digest as _, Sha256};

/// In a tenant's configuration the prefix stands for the role, because the whole name needs the database's OID, which only
/// the server knows.
pub(crate) use brokkr_tenant::instance_protocol::ROLE_PREFIX;

/// The beginning of the comment on every provisioned role.
const MARK: &str = "Brokkr Supervisor";

/// The longest part of the schema's name in a role's name, in bytes. A role's name has at most 63 bytes.
const SCHEMA_BYTES: usize = 32;

/// Returns the name of the role that owns this schema of the database with this OID.
pub(crate) fn role_name(database: u32, schema: &SchemaName) -> String {
    let digest = Sha256::digest(format!("{database}/{schema}"));
    let hex: String = digest[..6].iter().map(|b| format!("{b:02x}")).collect();
    // A schema's name is ASCII.
    let text = schema.as_str();
    format!(
        "{ROLE_PREFIX}{}_{hex}",
        &text[..text.len().min(SCHEMA_BYTES)]
    )
}

/// Returns the comment on a role. A role without such a comment was made by another program, and is never altered.
pub(super) fn comment(supervisor: &str, database: &str, tenant: &TenantName) -> String {
    format!("{MARK} {supervisor}: database {database}, tenant {tenant}")
}

/// Returns the supervisor that a role's comment names; `None` for the comment of another program.
pub(super) fn supervisor_of(comment: &str) -> Option<&str> {
    let rest = comment.strip_prefix(MARK)?.strip_prefix(' ')?;
    Some(rest.split_once(": database ")?.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_name_fits_and_differs_by_database_and_by_the_end_of_a_long_schema() {
        let schema = |text: &str| SchemaName::parse(text).unwrap();
        let long = "s".repeat(62);
        let names = [
            role_name(5, &schema("acme")),
            role_name(6, &schema("acme")),
            role_name(5, &schema(&format!("{long}a"))),
            role_name(5, &schema(&format!("{long}b"))),
        ];
        for (n, name) in names.iter().enumerate() {
            assert!(name.len() <= 63 && name.starts_with(ROLE_PREFIX), "{name}");
            assert!(!names[..n].contains(name), "{name}");
        }
        assert!(names[0].starts_with("brokkr_t_acme_"));
    }

    #[test]
    fn only_our_own_comment_names_a_supervisor() {
        let tenant = TenantName::parse("acme").unwrap();
        let text = comment("brokkr:0a1b2c3d", "shop", &tenant);
        assert_eq!(supervisor_of(&text), Some("brokkr:0a1b2c3d"));
        assert_eq!(supervisor_of("the role of acme"), None);
    }
}
