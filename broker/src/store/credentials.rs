//! Finds the holders of PAKs.

use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

/// A possible holder of a PAK.
#[derive(Debug)]
pub enum Holder {
    /// The admin role, always returned; the caller compares its hash.
    Admin {
        /// Lower-case hex SHA-256.
        pak_hash: String,
    },
    /// A live agent with the requested hash.
    Agent(Uuid),
    /// A live generator with the requested hash.
    Generator(Uuid),
}

/// The possible holders of one PAK, and the epoch of the answer.
#[derive(Debug)]
pub struct Candidates {
    /// A counter that rises whenever a PAK becomes invalid. It is read in the same snapshot as the holders, so the
    /// holders are unchanged while it is unchanged.
    pub epoch: i64,
    /// The holders in the order in which to check them.
    pub holders: Vec<Holder>,
}

/// Returns the admin role, then the live agents, then the live generators with this hash (lower-case hex), in one
/// statement.
pub fn candidates(db: &mut impl Sql, pak_hash: &str) -> Result<Candidates, DbError> {
    const SQL: &str = "\
        SELECT 0::int AS rank, NULL::uuid AS id, NULL::text AS pak_hash, credentials_epoch FROM brokkr_meta
        UNION ALL
        SELECT 1, NULL, admin.pak_hash, NULL
          FROM (SELECT pak_hash FROM admin_role ORDER BY created_at, id LIMIT 1) AS admin
        UNION ALL
        SELECT 2, id, NULL, NULL FROM agents WHERE pak_hash = $1 AND deleted_at IS NULL
        UNION ALL
        SELECT 3, id, NULL, NULL FROM generators WHERE pak_hash = $1 AND deleted_at IS NULL
        ORDER BY rank";
    let mut found = Candidates {
        epoch: 0,
        holders: Vec::new(),
    };
    for row in db.query(SQL, &[&pak_hash])? {
        let holder = match row.try_get::<_, i32>(0)? {
            0 => {
                found.epoch = row.try_get(3)?;
                continue;
            }
            1 => Holder::Admin {
                pak_hash: row.try_get(2)?,
            },
            2 => Holder::Agent(row.try_get(1)?),
            _ => Holder::Generator(row.try_get(1)?),
        };
        found.holders.push(holder);
    }
    Ok(found)
}

/// Returns the positions of the hashes that are no longer in use, in order, in one statement for any number of hashes.
pub fn unheld(db: &mut impl Sql, pak_hashes: &[String]) -> Result<Vec<usize>, DbError> {
    const SQL: &str = "\
        SELECT asked.n FROM unnest($1::text[]) WITH ORDINALITY AS asked (pak_hash, n)
         WHERE NOT EXISTS (SELECT FROM agents a WHERE a.pak_hash = asked.pak_hash AND a.deleted_at IS NULL)
           AND NOT EXISTS (SELECT FROM generators g WHERE g.pak_hash = asked.pak_hash AND g.deleted_at IS NULL)
           AND NOT EXISTS (SELECT FROM admin_role r WHERE r.pak_hash = asked.pak_hash)
         ORDER BY asked.n";
    let places: Vec<i64> = row::all(db, SQL, &[&pak_hashes])?;
    let index = |n: i64| usize::try_from(n - 1).unwrap_or(usize::MAX);
    Ok(places.into_iter().map(index).collect())
}
