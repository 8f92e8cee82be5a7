//! Detection of files that this process executes but that are no longer on disk, such as an old library after an
//! upgrade.
//!
//! The broker reports these files because the supervisor cannot read the memory map of a process that is not dumpable.

use std::collections::BTreeSet;

/// The largest number of files that are named; a process has few libraries.
const MOST: usize = 16;

/// Reads `/proc/self/maps`. Returns `None` when that is not permitted.
pub(super) fn deleted_files() -> Option<BTreeSet<String>> {
    Some(deleted(&std::fs::read_to_string("/proc/self/maps").ok()?))
}

/// Returns the deleted files behind executable mappings. Ignores memory that only looks like a file (memfd, shared
/// memory, devices).
fn deleted(maps: &str) -> BTreeSet<String> {
    let files = maps.lines().filter_map(|line| {
        let mut fields = line.splitn(6, ' ');
        let executable = fields.nth(1)?.contains('x');
        let path = fields.nth(3)?.trim_start().strip_suffix(" (deleted)")?;
        let no_file = ["/memfd:", "/SYSV", "/dev/"];
        let is_file = path.starts_with('/') && !no_file.iter().any(|begin| path.starts_with(begin));
        (executable && is_file).then(|| path.to_owned())
    });
    files.take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::deleted;

    #[test]
    fn only_executed_files_without_a_name_count() {
        let maps = "\
5590f1a00000-5590f1b00000 r-xp 00001000 08:01 131 /usr/bin/brokkr-broker
7f0000000000-7f0000026000 r--p 00000000 08:01 77                         /usr/lib/libc.so.6 (deleted)
7f0000026000-7f0000170000 r-xp 00026000 08:01 77                         /usr/lib/libc.so.6 (deleted)
7f0000170000-7f0000171000 r-xp 00026000 08:01 79                         /usr/lib/with a space.so (deleted)
7f0000200000-7f0000201000 rw-p 00000000 08:01 78                         /usr/lib/libm.so.6 (deleted)
7f0000300000-7f0000301000 r-xp 00000000 00:01 9                          /memfd:jit (deleted)
7f0000400000-7f0000401000 rwxs 00000000 00:01 9                          /dev/zero (deleted)
7f0000500000-7f0000501000 rwxs 00000000 00:01 9                          /SYSV00000000 (deleted)
7ffc00000000-7ffc00021000 r-xp 00000000 00:00 0                          [vdso]
7ffc00000000-7ffc00021000 rwxp 00000000 00:00 0 
";
        let found: Vec<String> = deleted(maps).into_iter().collect();
        assert_eq!(found, ["/usr/lib/libc.so.6", "/usr/lib/with a space.so"]);
    }
}
