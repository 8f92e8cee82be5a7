//! Whose connection it is, for everybody who looks into `pg_stat_activity`.

use std::sync::OnceLock;

/// PostgreSQL cuts an `application_name` after this many bytes.
const MAX: usize = 63;

/// The name of a tenant's connections from this host: `brokkr:` + 8 hexadecimal digits of the machine id + `:` + tenant.
/// At most 63 bytes.
pub fn application_name(tenant: &str) -> String {
    let mut name = format!("{}{tenant}", application_prefix());
    let mut end = MAX.min(name.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name
}

/// What every `application_name` of this host begins with: `brokkr:` + 8 hexadecimal digits + `:`.
pub fn application_prefix() -> &'static str {
    static PREFIX: OnceLock<String> = OnceLock::new();
    PREFIX.get_or_init(|| format!("brokkr:{}:", machine()))
}

/// The first 8 hexadecimal digits of the machine id; of a hash of the host name where there is none (some containers).
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
    // FNV-1a: stable over versions of the program, which the standard library's hashes need not be.
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
