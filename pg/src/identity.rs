//! The `application_name` that marks a tenant's connections in `pg_stat_activity`.

use std::sync::OnceLock;

/// The length, in bytes, at which PostgreSQL cuts an `application_name`.
const MAX: usize = 63;

/// Returns the `application_name` of a tenant on this host, at most 63 bytes: `brokkr:` + 8 hexadecimal digits of the
/// machine id + `:` + tenant.
pub fn application_name(tenant: &str) -> String {
    let mut name = format!("{}{tenant}", application_prefix());
    let mut end = MAX.min(name.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name
}

/// Returns the beginning of every `application_name` of this host: `brokkr:` + 8 hexadecimal digits + `:`.
pub fn application_prefix() -> &'static str {
    static PREFIX: OnceLock<String> = OnceLock::new();
    PREFIX.get_or_init(|| format!("brokkr:{}:", machine()))
}

/// Returns the first 8 hexadecimal digits of the machine id, or of a hash of the host name on hosts without a machine
/// id (some containers).
fn machine() -> String {
    for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
        if let Some(id) = std::fs::read_to_string(path)
            .ok()
            .as_deref()
            .and_then(digits)
        {
            return id;
        }
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // FNV-1a, because its values stay the same in every version of the program; those of the standard library may
    // change.
    let hash = host.trim().bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:08x}")
}

fn digits(text: &str) -> Option<String> {
    let first = text.trim().get(..8)?;
    first
        .bytes()
        .all(|b| b.is_ascii_hexdigit())
        .then(|| first.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_longest_tenant_is_not_cut() {
        let tenant = "a".repeat(47);
        let name = application_name(&tenant);
        assert_eq!(name.len(), 63);
        assert!(name.starts_with("brokkr:") && name.ends_with(&tenant));
        assert_eq!(application_name(&"ä".repeat(60)).len() % 2, 0);
    }

    #[test]
    fn only_eight_hexadecimal_digits_are_a_machine_id() {
        assert_eq!(digits("0123ABCD4567\n").as_deref(), Some("0123abcd"));
        assert_eq!(digits("uninitialized\n"), None);
        assert_eq!(digits(""), None);
    }
}
