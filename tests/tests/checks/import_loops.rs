//! Files and folders import each other in no loop.

use crate::structure::{code, sources};
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn the_files_of_the_broker_import_each_other_in_no_loop() {
    let modules = modules("broker/src");
    assert!(modules.len() > 100, "{:?}", modules.keys());
    let imports: Arrows = modules
        .keys()
        .map(|module| (module.clone(), imports(&modules, module)))
        .collect();
    assert!(imports["api::stacks"].contains("store::stacks"));
    assert!(imports["api"].contains("api::stacks"));
    let mut folders = Arrows::new();
    for (module, imports) in &imports {
        let folder = |module: &str| module.split("::").next().unwrap().to_owned();
        let from = folder(module);
        let others = imports.iter().map(|module| folder(module));
        // `app` holds the handles of folders whose tasks use it.
        folders
            .entry(from.clone())
            .or_default()
            .extend(others.filter(|other| *other != from && *other != "app" && from != "app"));
    }
    assert_eq!(on_loops(imports), Arrows::new());
    assert_eq!(on_loops(folders), Arrows::new());
}

/// The imports of each module or folder.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// Returns the code of each module of a crate, without comments and tests, by the module's path (`api::stacks`).
fn modules(folder: &str) -> BTreeMap<String, String> {
    let mut modules = BTreeMap::new();
    for (name, text) in sources(folder) {
        let path = name[folder.len() + 1..].trim_end_matches(".rs");
        if ["lib", "main"].contains(&path) || path.ends_with("tests") {
            continue;
        }
        let code = text.split("\n#[cfg(test)]\n").next().unwrap();
        let lines = code.lines().filter(|l| !l.trim_start().starts_with("//"));
        modules.insert(
            path.replace('/', "::"),
            lines.collect::<Vec<_>>().join("\n"),
        );
    }
    modules
}

/// Returns the modules that a module names: by `crate::`, by `super::`, or as a child.
fn imports(modules: &BTreeMap<String, String>, module: &str) -> BTreeSet<String> {
    let code = &modules[module];
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut paths = Vec::new();
    let mut starts = vec![("crate::".to_owned(), String::new())];
    starts.push(("super::".to_owned(), format!("{parent}::")));
    for child in modules.keys() {
        if let Some(name) = child.strip_prefix(&format!("{module}::"))
            && !name.contains("::")
        {
            starts.push((format!("{name}::"), format!("{child}::")));
        }
    }
    for (word, prefix) in starts {
        for (at, _) in code.match_indices(&word) {
            let before = &code[..at];
            // Part of a longer path, or the visibility `pub(in crate::…)`.
            let is_part = before.ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c));
            if !is_part && !before.ends_with("(in ") {
                spread(&code[at + word.len()..], &prefix, &mut paths);
            }
        }
    }
    paths
        .iter()
        .filter_map(|path| {
            let mut path = path.as_str();
            while !modules.contains_key(path) {
                path = path.rsplit_once("::")?.0;
            }
            (path != module).then(|| path.to_owned())
        })
        .collect()
}

/// Collects the paths of a `use` tree, or one path. Returns the length of the tree.
fn spread(tree: &str, prefix: &str, paths: &mut Vec<String>) -> usize {
    let end = tree
        .find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
        .unwrap_or(tree.len());
    let path = format!("{prefix}{}", &tree[..end]);
    if !tree[end..].starts_with('{') {
        paths.push(path);
        return end;
    }
    let mut at = end + 1;
    loop {
        at += tree[at..].len() - tree[at..].trim_start_matches([' ', '\n', ',']).len();
        if tree[at..].starts_with('}') {
            return at + 1;
        }
        at += spread(&tree[at..], &path, paths);
        // A name after `as`.
        at += tree[at..].find([',', '}']).unwrap();
    }
}

/// Returns the arrows on a loop or between two loops.
fn on_loops(mut arrows: Arrows) -> Arrows {
    loop {
        let imported: BTreeSet<String> = arrows.values().flatten().cloned().collect();
        let before = arrows.len();
        arrows.retain(|name, imports| !imports.is_empty() && imported.contains(name));
        let left: BTreeSet<String> = arrows.keys().cloned().collect();
        for imports in arrows.values_mut() {
            imports.retain(|name| left.contains(name));
        }
        if arrows.len() == before {
            return arrows;
        }
    }
}

/// Returns, as "a -> b", the imports between the top folders of `src` that are part of a loop.
///
/// Reads only paths that begin with `crate::`, because no other path leads from one top folder to another.
fn folder_loops(src: &str) -> Vec<String> {
    let mut imports = std::collections::BTreeSet::new();
    for (name, text) in sources(src) {
        let (from, _) = name[src.len() + 1..].split_once(['/', '.']).unwrap();
        let lines: Vec<&str> = code(&name, &text).iter().map(|(_, line)| *line).collect();
        for path in lines.join(" ").split("crate::").skip(1) {
            let targets: Vec<&str> = match path.strip_prefix('{') {
                Some(group) => group.split('}').next().unwrap().split(',').collect(),
                None => vec![path],
            };
            for to in targets {
                let end = |c: char| !c.is_alphanumeric() && c != '_';
                let to = to.trim().split(end).next().unwrap();
                if to != from {
                    imports.insert((from.to_owned(), to.to_owned()));
                }
            }
        }
    }
    // An import is part of no loop when its target imports nothing, or when nothing imports its source.
    loop {
        let all = imports.clone();
        imports.retain(|(from, to)| {
            all.iter().any(|(other, _)| other == to) && all.iter().any(|(_, other)| other == from)
        });
        if imports.len() == all.len() {
            return imports
                .iter()
                .map(|(from, to)| format!("{from} -> {to}"))
                .collect();
        }
    }
}

#[test]
fn no_folders_of_the_supervisor_import_each_other_in_a_loop() {
    assert_eq!(folder_loops("supervisor/src"), Vec::<String>::new());
}
