//! The parsers of bytes that clients write, for the fuzz targets: each takes any bytes, and panics when a rule is broken.

use crate::{auth, websocket};

/// Hashes the PAK of an `Authorization` header.
pub fn pak(data: &[u8]) {
    if let Some(hash) = auth::pak_hash(data) {
        let hash = hash.as_str();
        assert!(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let bearer = [b"bearer ", data].concat();
        // Unless the header names the scheme itself, the scheme does not matter.
        if !data.contains(&b' ') {
            assert_eq!(
                auth::pak_hash(&bearer).map(|hash| hash.as_str().to_owned()),
                Some(hash.to_owned())
            );
        }
    }
}

/// Parses a text frame of an agent.
pub fn websocket_frame(data: &[u8]) {
    websocket::check_parsing(data);
}
