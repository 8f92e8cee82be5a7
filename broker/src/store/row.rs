//! Reads rows by the position of their columns.

use chrono::{DateTime, Utc};
use postgres::Row;
use postgres::types::{FromSqlOwned, ToSql};
use serde_json::Value;
use uuid::Uuid;

use crate::db::{DbError, Sql};

/// Defines a struct that is read from one column per field. With `name = "prefix";` before the struct, also defines a
/// macro of this name that lists the columns, each with the prefix (the alias of a table, or nothing).
macro_rules! row {
    (
        $columns:ident = $prefix:literal;
        $(#[$attribute:meta])*
        pub struct $name:ident {
            $(#[$first_attribute:meta])*
            pub $first:ident: $first_type:ty,
            $(
                $(#[$field_attribute:meta])*
                pub $field:ident: $type:ty,
            )*
        }
    ) => {
        row! {
            $(#[$attribute])*
            pub struct $name {
                $(#[$first_attribute])*
                pub $first: $first_type,
                $(
                    $(#[$field_attribute])*
                    pub $field: $type,
                )*
            }
        }

        macro_rules! $columns {
            () => {
                concat!($prefix, stringify!($first) $(, ", ", $prefix, stringify!($field))*)
            };
        }
    };
    (
        $(#[$attribute:meta])*
        pub struct $name:ident {
            $(
                $(#[$field_attribute:meta])*
                pub $field:ident: $type:ty,
            )*
        }
    ) => {
        $(#[$attribute])*
        pub struct $name {
            $(
                $(#[$field_attribute])*
                pub $field: $type,
            )*
        }

        impl $crate::store::row::FromColumns for $name {
            fn read(
                columns: &mut $crate::store::row::Columns<'_>,
            ) -> Result<Self, $crate::db::DbError> {
                Ok(Self {
                    $($field: columns.take()?,)*
                })
            }
        }
    };
}

/// The columns of a row, of which each is read once, from the first to the last.
#[derive(Debug)]
pub struct Columns<'a> {
    row: &'a Row,
    next: usize,
}

impl Columns<'_> {
    /// Reads the next value.
    pub fn take<T: FromColumns>(&mut self) -> Result<T, DbError> {
        T::read(self)
    }

    fn single<T: FromSqlOwned>(&mut self) -> Result<T, DbError> {
        let value = self.row.try_get(self.next)?;
        self.next += 1;
        Ok(value)
    }
}

/// A value that consecutive columns of a row hold.
pub trait FromColumns: Sized {
    /// Reads the value from the next columns.
    fn read(columns: &mut Columns<'_>) -> Result<Self, DbError>;
}

macro_rules! single_columns {
    ($($type:ty),+) => {$(
        impl FromColumns for $type {
            fn read(columns: &mut Columns<'_>) -> Result<Self, DbError> {
                columns.single()
            }
        }
    )+};
}
single_columns!(
    bool,
    i32,
    i64,
    f64,
    String,
    Uuid,
    DateTime<Utc>,
    Value,
    Vec<u8>,
    Vec<String>
);

/// Reads a result of `count`, which is never negative.
impl FromColumns for usize {
    fn read(columns: &mut Columns<'_>) -> Result<Self, DbError> {
        let count: i64 = columns.take()?;
        Ok(Self::try_from(count).unwrap_or(0))
    }
}

impl<T: FromSqlOwned> FromColumns for Option<T> {
    fn read(columns: &mut Columns<'_>) -> Result<Self, DbError> {
        columns.single()
    }
}

macro_rules! tuples {
    ($(($($type:ident),+))+) => {$(
        impl<$($type: FromColumns),+> FromColumns for ($($type,)+) {
            fn read(columns: &mut Columns<'_>) -> Result<Self, DbError> {
                Ok(($(columns.take::<$type>()?,)+))
            }
        }
    )+};
}
tuples!((A, B)(A, B, C)(A, B, C, D));

/// Returns every row of a query, or stops at the first unreadable row. Each row is dropped once it has been read, so
/// that a long list is not in memory twice.
pub(super) fn all<T: FromColumns>(
    db: &mut impl Sql,
    sql: &'static str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Vec<T>, DbError> {
    db.query(sql, params)?.into_iter().map(read).collect()
}

/// Returns the first row of a query, if there is one.
pub(super) fn optional<T: FromColumns>(
    db: &mut impl Sql,
    sql: &'static str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Option<T>, DbError> {
    db.query_opt(sql, params)?.map(read).transpose()
}

/// Returns the first row of a query that always has a row.
pub(super) fn one<T: FromColumns>(
    db: &mut impl Sql,
    sql: &'static str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<T, DbError> {
    read(db.query_one(sql, params)?)
}

/// Reads a row from its first column on.
pub(super) fn read<T: FromColumns>(row: Row) -> Result<T, DbError> {
    T::read(&mut Columns { row: &row, next: 0 })
}
