//! Types that the supervisor and the broker share: tenant names, schemas, database URLs, and the tenant file.
//!
//! Values are parsed once, at the edge, into types that are always valid: [`TenantName`], [`SchemaName`],
//! [`DatabaseUrl`], [`Listen`], [`PoolSize`]. A configuration comes in layers ([`Layer`]: a file, the environment, the
//! program itself). [`resolve`] merges the layers by one table of keys ([`settings`]) into a [`BrokerConfig`], or
//! returns every problem as [`Diagnostics`]. The supervisor reads its own file in the same way, with its own table
//! ([`Keys`]).
//!
//! The crate has no async code and does no I/O except reading a file and following a path to it. No `Debug`, `Display`,
//! error or `Serialize` holds a secret: only [`InstanceConfig::to_json`] writes them in the clear.

#![forbid(unsafe_code)]

mod closest;
mod config;
mod diagnostic;
mod instance;
pub mod instance_protocol;
mod invalid;
mod keys;
mod layer;
mod links;
mod listen;
mod mask;
mod name;
mod network;
mod pool;
mod resolve;
mod schema;
mod secret;
pub mod settings;
mod socket_path;
mod source;
mod text_conversions;
mod tls;
mod units;
mod url;
pub mod url_file;
mod value;

pub use config::{
    BrokerConfig, BrokerSection, CorsConfig, DatabaseConfig, Digest, HttpConfig, LimitsConfig,
    LogConfig, LogFormat, LogLevel, PakConfig, SupervisionConfig, TargetStateMode, TelemetryConfig,
    WebhooksConfig,
};
pub use diagnostic::{Diagnostic, Diagnostics, Origin, Severity};
pub use instance::{INSTANCE_CONFIG_VERSION, InstanceConfig, InstanceConfigError};
pub use invalid::Invalid;
pub use keys::{Key, Keys, Kind};
pub use layer::Layer;
pub use links::Way;
pub use listen::{Listen, MAX_UNIX_PATH};
pub use name::{MAX_NAME, TenantName};
pub use network::Network;
pub use pool::PoolSize;
pub use resolve::{Mode, Resolved, resolve};
pub use schema::{MAX_SCHEMA, SchemaName};
pub use secret::Secret;
pub use socket_path::SocketPath;
pub use source::{MAX_FILE, Source};
pub use tls::{TlsConfig, TlsError, TlsPair};
pub use units::{ByteSize, format_duration, parse_duration};
pub use url::{ChannelBinding, DEFAULT_PORT, DatabaseUrl, Host, Keepalives, SslMode};
pub use value::{FromValue, Value};
