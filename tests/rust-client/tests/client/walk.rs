//! The published Rust client walks two supervised tenants at once, unmodified: it calls every operation and parses each
//! answer with its own types.
//!
//! The tools of the whole-system tests are blocking and the client is not, so each walk has its own thread and runtime.

#[macro_use]
mod talk;
mod admin;
mod ends;
mod people;
mod scene;
mod stacks;
mod telemetry;
mod templates;
mod watching;
mod webhooks;
mod work_orders;
mod wrapper;

use std::collections::BTreeSet;
use std::sync::Arc;

use brokkr_tests::Host;
use scene::Scene;

/// Returns every operation of the published client, whose methods are named as in its document.
fn operations() -> BTreeSet<String> {
    let document = crate::published::document();
    let paths = document["paths"].as_object().unwrap().values();
    paths
        .flat_map(|methods| methods.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap().to_owned())
        .collect()
}

/// Walks a tenant. A part that fails does not stop the other parts.
async fn walk(base_url: String, admin_pak: String) -> Result<usize, String> {
    let scene = Arc::new(Scene::new(base_url, admin_pak).await);
    let mut failed = Vec::new();
    macro_rules! parts {
        ($($part:ident),+) => {$(
            if let Err(error) = tokio::task::spawn_local($part::walk(scene.clone())).await {
                failed.push(format!("{}: {error}", stringify!($part)));
            }
        )+};
    }
    parts!(
        people,
        stacks,
        wrapper,
        templates,
        work_orders,
        webhooks,
        watching,
        telemetry,
        admin,
        ends
    );
    let called = talk::called();
    let operations = operations();
    let forgotten: Vec<_> = operations
        .iter()
        .filter(|name| !called.contains(*name))
        .collect();
    if failed.is_empty() && forgotten.is_empty() {
        return Ok(called.len());
    }
    Err(format!("failed: {failed:#?}\nnot called: {forgotten:?}"))
}

#[test]
fn the_published_rust_client_walks_two_supervised_tenants_at_once() {
    let host = Host::new();
    let tenants = [
        host.tenant("acme").pool(10).up(),
        host.tenant("globex").pool(10).up(),
    ];
    let walks = tenants.each_ref().map(|tenant| {
        let base_url = format!("http://{}", tenant.status().listen.unwrap());
        let pak = std::fs::read_to_string(tenant.state_dir().join("admin.pak")).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let parts = tokio::task::LocalSet::new();
            parts.block_on(&runtime, walk(base_url, pak.trim().to_owned()))
        })
    });
    for walk in walks {
        match walk.join().unwrap() {
            Ok(operations) => {
                println!("walk: {operations} operations");
                assert_eq!(operations, 96);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(tenants.iter().all(|tenant| tenant.status().restarts == 0));
}
