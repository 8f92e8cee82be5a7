//! The server answers, but the schema is missing.

use brokkr_tests::{Host, says, until};
use std::time::Duration;

/// Limit from the schema's return until the tenant is ready, on a loaded machine.
const BACK: Duration = Duration::from_secs(10);

#[test]
fn a_tenant_whose_schema_is_gone_is_not_ready_until_it_is_back() {
    let host = Host::new();
    let [acme, globex] = ["acme", "globex"].map(|name| host.tenant(name).up());
    let pids = [acme.pid(), globex.pid()];
    let api = acme.api();
    let agents = || api.try_call("GET", "/agents", None).unwrap();
    assert_eq!(agents().status, 200);
    let away = "ALTER SCHEMA tenant_acme RENAME TO kept";
    for (gone, back) in [
        (
            away.to_owned(),
            "ALTER SCHEMA kept RENAME TO tenant_acme".to_owned(),
        ),
        // An empty schema, as in a new cluster.
        (
            format!("{away}; CREATE SCHEMA tenant_acme AUTHORIZATION brokkr"),
            "DROP SCHEMA tenant_acme; ALTER SCHEMA kept RENAME TO tenant_acme".to_owned(),
        ),
        // A schema without one of its tables.
        (
            "ALTER TABLE tenant_acme.agents RENAME TO kept".to_owned(),
            "ALTER TABLE tenant_acme.kept RENAME TO agents".to_owned(),
        ),
    ] {
        host.server().sql(&gone);
        let refused = agents();
        assert_eq!(refused.status, 503, "{gone}: {}", refused.text());
        assert!(refused.header("retry-after").is_some());
        let status = acme.becomes("degraded");
        let reason = status.reason.unwrap();
        says(
            &reason,
            &["schema tenant_acme is gone or not as it was", "42P01"],
        );
        assert_eq!(acme.get("/readyz").status, 503);
        assert_eq!(acme.get("/healthz").status, 200);
        // The tenant stays degraded although the prober finds the server well.
        host.reload();
        assert_eq!(host.status().state("acme"), "degraded");
        assert_eq!(host.status().state("globex"), "ready");

        host.server().sql(&back);
        acme.wait_within(BACK, "ready again", |status| status.state == "ready");
        until(BACK, "requests to be answered", || {
            (agents().status == 200).then_some(())
        });
    }
    assert_eq!([acme.pid(), globex.pid()], pids, "no broker was restarted");
}
