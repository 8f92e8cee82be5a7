//! Asks systemd, over D-Bus, what it is doing with this unit: a SIGTERM alone does not say whether it is the first half
//! of a restart or a stop.

use std::time::Duration;
use zbus::{Connection, OwnedObjectPath, OwnedVariant};

/// For the whole conversation. Who does not answer is taken to mean a stop.
const PATIENCE: Duration = Duration::from_secs(3);
/// systemd's own socket, for root, there even where no bus is.
const PRIVATE: &str = "unix:path=/run/systemd/private";
/// Who is asked, and about what.
const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "/org/freedesktop/systemd1";

/// Whether systemd is restarting our unit. Unsure means no.
pub(crate) async fn is_restart() -> bool {
    match job().await {
        Ok(job) => matches!(job.as_deref(), Some("restart" | "try-restart")),
        Err(problem) => {
            tracing::warn!(
                "systemd cannot be asked whether this is a restart ({problem}): it is taken for a stop"
            );
            false
        }
    }
}

/// The type of the job our unit is in, if any: `restart`, `stop`, `start` …
///
/// # Errors
/// Why systemd could not be asked.
pub(crate) async fn job() -> Result<Option<String>, String> {
    asked(async {
        let (connection, unit) = unit().await?;
        let job = property(&connection, &unit, "Unit", "Job").await?;
        let (id, path): (u32, OwnedObjectPath) = job.try_into()?;
        if id == 0 {
            return Ok(None);
        }
        let job_type = property(&connection, &path, "Job", "JobType").await?;
        Ok(Some(job_type.try_into()?))
    })
    .await
}

/// How many descriptors systemd keeps for our unit.
///
/// # Errors
/// Why systemd could not be asked.
pub(crate) async fn store_max() -> Result<u32, String> {
    asked(async {
        let (connection, unit) = unit().await?;
        let most = property(&connection, &unit, "Service", "FileDescriptorStoreMax").await?;
        most.try_into()
    })
    .await
}

async fn asked<T>(question: impl Future<Output = zbus::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, question).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

/// Our own unit.
async fn unit() -> zbus::Result<(Connection, OwnedObjectPath)> {
    let connection = connection().await?;
    let interface = format!("{SYSTEMD}.Manager");
    let us = std::process::id();
    let answer = connection
        .call_method(Some(SYSTEMD), MANAGER, Some(interface), "GetUnitByPID", &us)
        .await?;
    let unit = answer.body().deserialize()?;
    Ok((connection, unit))
}

async fn property(
    connection: &Connection,
    path: &OwnedObjectPath,
    interface: &str,
    name: &str,
) -> zbus::Result<OwnedVariant> {
    let question = (format!("{SYSTEMD}.{interface}"), name);
    let answer = connection
        .call_method(
            Some(SYSTEMD),
            path.as_str(),
            Some("org.freedesktop.DBus.Properties"),
            "Get",
            &question,
        )
        .await?;
    answer.body().deserialize()
}

async fn connection() -> zbus::Result<Connection> {
    let private = zbus::conn::Builder::address(PRIVATE).p2p().build();
    match private.await {
        Ok(connection) => Ok(connection),
        // Anybody but root: by way of the bus.
        Err(_) => Connection::system().await,
    }
}
