//! Rows of Parquet files, as Hugging Face `datasets`, pyarrow and pandas write them.

use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;
use ::parquet::record::reader::RowIter;
use ::parquet::schema::types::Type;

use super::row::{Fields, Value};
use super::shape::SHAPES;
use super::{NumberedRow, Rows};
use crate::{Error, Result};

/// Rows that are decoded at a time: few, since a row may carry pictures.
const READ_AHEAD: usize = 8;

/// The rows of a Parquet file. Only columns that `reads` names are decoded; the names of the others stay as keys without a value.
///
/// # Errors
/// The file cannot be read or is damaged.
pub(super) fn rows(path: &Path, reads: impl Fn(&str) -> bool) -> Result<Rows> {
    let file = File::open(path).map_err(|error| Error::io("read", path, &error))?;
    Ok(Box::new(checked(path, || Table::open(path, file, reads))?))
}

/// The decoder checks most of what a damaged file can say, but not all: some damage ends in a panic inside it.
fn checked<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = crate::error::guarded(AssertUnwindSafe(work));
    done.unwrap_or_else(|| Err(damaged(path, &"its parts contradict each other")))
}

fn damaged(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::at(path.display(), format!("not a whole Parquet file: {why}")).hint("copy or download it again")
}

/// An open file and how far it is read.
struct Table {
    path: PathBuf,
    rows: RowIter<'static>,
    unused: Vec<String>,
    number: usize,
}

impl Table {
    fn open(path: &Path, file: File, reads: impl Fn(&str) -> bool) -> Result<Self> {
        let failed = |error: ParquetError| damaged(path, &error);
        let reader = SerializedFileReader::new(file).map_err(failed)?;
        let schema = reader.metadata().file_metadata().schema();
        let (used, unused): (Vec<_>, Vec<_>) =
            schema.get_fields().iter().cloned().partition(|field| reads(field.name()));
        let unused: Vec<String> = unused.iter().map(|field| field.name().to_owned()).collect();
        if used.is_empty() {
            let columns = Fields::new(without_values(&unused).collect()).keys();
            return Err(
                Error::at(path.display(), format!("no column of a known shape; columns found: {columns}")).hint(SHAPES)
            );
        }
        let projection = Type::group_type_builder(schema.name()).with_fields(used).build().map_err(failed)?;
        let rows = RowIter::from_file_into(Box::new(reader)).project(Some(projection)).map_err(failed)?;
        Ok(Table { path: path.to_owned(), rows: rows.with_batch_size(READ_AHEAD), unused, number: 0 })
    }
}

impl Iterator for Table {
    type Item = Result<NumberedRow>;

    fn next(&mut self) -> Option<Self::Item> {
        let Table { path, rows, unused, number } = self;
        let row = checked(path, || rows.next().transpose().map_err(|error| damaged(path, &error)));
        let columns = match row.transpose()? {
            Ok(row) => row.into_columns(),
            Err(error) => return Some(Err(error)),
        };
        *number += 1;
        let fields = columns.into_iter().map(named).chain(without_values(unused)).collect();
        Some(Ok((*number, Ok(Value::Object(fields)))))
    }
}

fn without_values(columns: &[String]) -> impl Iterator<Item = (String, Value)> {
    columns.iter().map(|name| (name.clone(), Value::Null))
}

fn named((key, field): (String, Field)) -> (String, Value) {
    (key, value(field))
}

fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(value),
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
        Field::Double(number) => Value::Number(number),
        Field::Float(number) => Value::Number(f64::from(number)),
        Field::Byte(number) => Value::Number(f64::from(number)),
        Field::Short(number) => Value::Number(f64::from(number)),
        Field::Int(number) => Value::Number(f64::from(number)),
        Field::Long(number) => Value::Number(number as f64),
        Field::UByte(number) => Value::Number(f64::from(number)),
        Field::UShort(number) => Value::Number(f64::from(number)),
        Field::UInt(number) => Value::Number(f64::from(number)),
        Field::ULong(number) => Value::Number(number as f64),
        _ => Value::Other("a number"),
    }
}
