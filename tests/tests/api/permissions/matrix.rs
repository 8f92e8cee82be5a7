//! The permission matrix as tables, one file for each area: the answer of each operation to each principal.

pub(crate) mod admin;
pub(crate) mod core;
pub(crate) mod diagnostics;
pub(crate) mod live;
pub(crate) mod templates;
pub(crate) mod webhooks;
pub(crate) mod work_orders;

use brokkr_tests::api_fixture::{Party, World};

pub(crate) const AR: &str = "403 admin_required";
pub(crate) const APM: &str = "403 agent_pak_mismatch";
pub(crate) const SNO: &str = "403 stack_not_owned";
pub(crate) const GNO: &str = "403 generator_not_owned";
pub(crate) const GR: &str = "403 generator_required";
pub(crate) const TCD: &str = "403 target_create_denied";
pub(crate) const ANR: &str = "403 agent_not_registered";
pub(crate) const NA: &str = "403 not_authorized";
pub(crate) const FORBIDDEN: &str = "403 forbidden";
pub(crate) const SNA: &str = "403 stack_not_accessible";
pub(crate) const SLD: &str = "403 stacks_list_denied";
pub(crate) const SCD: &str = "403 stack_create_denied";

/// Method and path, body (empty for none), shape of a success, and the answers to admin, self, other agent, owning
/// generator, other generator. Names in braces come from the fixture.
pub(crate) type Row = (&'static str, &'static str, &'static str, [&'static str; 5]);

pub(crate) fn rows() -> impl Iterator<Item = &'static Row> {
    [
        core::ROWS,
        templates::ROWS,
        work_orders::ROWS,
        webhooks::ROWS,
        diagnostics::ROWS,
        live::ROWS,
        admin::ROWS,
    ]
    .into_iter()
    .flatten()
}

/// The names that rows may use in braces, and their owners.
pub(crate) struct Scene<'a> {
    pub(crate) world: &'a World,
    /// The agent under test: registered with `owner`, targeted at its stack.
    pub(crate) own: &'a Party,
    /// The generator that owns `stack`.
    pub(crate) owner: &'a Party,
    pub(crate) stranger: &'a Party,
    /// A deployment object of that stack.
    pub(crate) object: &'a str,
}

/// The names that an area adds to the scene, with their values.
pub(crate) type Names = Vec<(&'static str, String)>;

/// Returns the names of every area.
pub(crate) fn names(scene: &Scene<'_>) -> Names {
    [
        templates::names,
        work_orders::names,
        webhooks::names,
        diagnostics::names,
        live::names,
        admin::names,
    ]
    .into_iter()
    .flat_map(|of_area| of_area(scene))
    .collect()
}
