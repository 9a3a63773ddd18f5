//! Rows of Parquet files, as Hugging Face `datasets`, pyarrow and pandas write them.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;
use ::parquet::schema::types::Type;

use super::NumberedRow;
use super::row::{Fields, Value};
use super::shape::{COLUMNS, SHAPES};
use crate::{Error, Result};

/// The rows of a Parquet file. Columns that no shape uses are not decoded; their names stay as keys without a value.
///
/// # Errors
/// The file cannot be read or is damaged.
pub(super) fn rows(path: &Path) -> Result<Vec<NumberedRow>> {
    let file = File::open(path).map_err(|error| Error::io("read", path, &error))?;
    // The decoder checks most of what a damaged file can say, but not all: some damage ends in a panic inside it.
    let rows = crate::error::guarded(|| decode(path, file));
    let rows = rows.unwrap_or_else(|| Err(damaged(path, &"its parts contradict each other")))?;
    Ok(rows.into_iter().enumerate().map(|(i, row)| (i + 1, Ok(row))).collect())
}

fn damaged(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::at(path.display(), format!("not a whole Parquet file: {why}")).hint("copy or download it again")
}

fn decode(path: &Path, file: File) -> Result<Vec<Value>> {
    let failed = |error: ParquetError| damaged(path, &error);
    let reader = SerializedFileReader::new(file).map_err(failed)?;
    let schema = reader.metadata().file_metadata().schema();
    let (used, unused): (Vec<_>, Vec<_>) =
        schema.get_fields().iter().cloned().partition(|field| COLUMNS.contains(&field.name()));
    let without_values = || unused.iter().map(|field| (field.name().to_owned(), Value::Null));
    if used.is_empty() {
        let columns = Fields::new(without_values().collect()).keys();
        return Err(
            Error::at(path.display(), format!("no column of a known shape; columns found: {columns}")).hint(SHAPES)
        );
    }
    let projection = Type::group_type_builder(schema.name()).with_fields(used).build().map_err(failed)?;
    let rows = reader.get_row_iter(Some(projection)).map_err(failed)?;
    rows.map(|row| {
        let columns = row.map_err(failed)?.into_columns();
        Ok(Value::Object(columns.into_iter().map(named).chain(without_values()).collect()))
    })
    .collect()
}

fn named((key, field): (String, Field)) -> (String, Value) {
    (key, value(field))
}

fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(_) => Value::Other("a boolean"),
        Field::Str(text) => Value::Text(text),
        Field::Bytes(bytes) => Value::Bytes(Arc::from(bytes.data())),
        Field::Group(row) => Value::Object(row.into_columns().into_iter().map(named).collect()),
        Field::ListInternal(list) => Value::List(list.elements().iter().cloned().map(value).collect()),
        Field::MapInternal(_) => Value::Other("a map"),
        Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => Value::Other("a time"),
        _ => Value::Other("a number"),
    }
}
