//! Follows a path as the kernel does, and records the names on the way that decide the target.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Component, Path, PathBuf},
};

/// The largest number of links that are followed, as in Linux; a path with more is a loop.
const MOST_LINKS: usize = 40;

/// The way from a path to its file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Way {
    /// Every link on the way, and the file or the first missing name, each as an entry of a real folder. While none of
    /// these entries changes, the path leads to the same file.
    pub names: BTreeSet<PathBuf>,
    /// The file at the end of the way, if it exists.
    pub target: Option<PathBuf>,
}

impl Way {
    /// Follows `path`; a relative path starts at the current folder.
    pub fn to(path: &Path) -> Self {
        let mut way = Self::default();
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut at = PathBuf::from("/");
        let mut ahead = reversed(&path);
        let mut links = 0;
        while let Some(part) = ahead.pop() {
            if part == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&part);
            let found = next.symlink_metadata();
            match &found {
                Ok(found) if found.is_symlink() && links < MOST_LINKS => {
                    links += 1;
                    way.names.insert(next.clone());
                    let Ok(target) = next.read_link() else {
                        return way;
                    };
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    ahead.extend(reversed(&target));
                }
                Ok(found) if !found.is_symlink() && !ahead.is_empty() => at = next,
                Ok(found) if !found.is_symlink() => {
                    way.names.insert(next.clone());
                    way.target = Some(next);
                }
                _ => {
                    way.names.insert(next);
                    return way;
                }
            }
        }
        way
    }
}

/// Returns the parts of a path in reverse order.
fn reversed(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(way: &Way, root: &Path) -> Vec<String> {
        let inside = |path: &PathBuf| Some(path.strip_prefix(root).ok()?.display().to_string());
        way.names.iter().filter_map(inside).collect()
    }

    #[test]
    fn every_link_of_a_chain_and_the_file_at_its_end_are_on_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for folder in ["t", "maps/..1", "maps/..2"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("maps/..1/a.toml"), "").unwrap();
        symlink("..1", root.join("maps/..data")).unwrap();
        symlink("../maps/..data/a.toml", root.join("t/a.toml")).unwrap();
        let way = Way::to(&root.join("t/a.toml"));
        let all = ["maps/..1/a.toml", "maps/..data", "t/a.toml"];
        assert_eq!(names(&way, &root), all);
        assert_eq!(way.target, Some(root.join("maps/..1/a.toml")));

        // The names include a missing file or folder, so that its appearance is noticed.
        std::fs::remove_file(root.join("maps/..data")).unwrap();
        symlink("..2", root.join("maps/..data")).unwrap();
        let way = Way::to(&root.join("t/a.toml"));
        assert_eq!(names(&way, &root)[0], "maps/..2/a.toml");
        assert_eq!(way.target, None);
        std::fs::remove_dir(root.join("maps/..2")).unwrap();
        let way = Way::to(&root.join("t/a.toml"));
        assert_eq!(names(&way, &root)[0], "maps/..2");

        // A loop ends.
        symlink("loop", root.join("loop")).unwrap();
        let way = Way::to(&root.join("loop"));
        assert_eq!((names(&way, &root).len(), way.target), (1, None));
        // The way to a plain file holds only that file.
        let way = Way::to(&root.join("t/../maps/..1/a.toml"));
        assert_eq!(names(&way, &root), ["maps/..1/a.toml"]);
    }
}
