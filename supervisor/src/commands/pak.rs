//! The command `pak`.

use super::client::ControlClient;
use super::{Failure, say};
use brokkr_tenant::TenantName;

pub(super) fn pak(client: &ControlClient, tenant: &TenantName) -> Result<(), Failure> {
    let pak = client.get(&format!("/v1/pak/{tenant}"))?;
    say(&pak)
}
