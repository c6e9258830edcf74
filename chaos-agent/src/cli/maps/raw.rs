//! Elements of the maps as bytes, in hexadecimal. Elements of arrays that are all zero are not
//! in use, and left out.

use std::mem::size_of;
use std::path::Path;

use anyhow::{Context as _, bail};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use chaos_abi::counters::Counters;
use chaos_abi::network::{PeerKey, Rule, State, Target};
use serde_json::json;

use super::decode::Row;

/// The elements of a map that are in use.
pub(super) fn dump(directory: &Path, name: &str) -> anyhow::Result<Vec<Row>> {
    let path = directory.join(name);
    let data =
        MapData::from_pin(&path).with_context(|| format!("failed to open {}", path.display()))?;
    Ok(match name {
        "CONTROL" | "DEPTHS" => array::<4>(data)?,
        "WAITING" => array::<8>(data)?,
        "STATE" => array::<{ size_of::<State>() }>(data)?,
        "RULES" => array::<{ size_of::<Rule>() }>(data)?,
        "COUNTERS" => per_cpu(data)?,
        "PEERS" => hash::<{ size_of::<PeerKey>() }, 1>(data)?,
        "CGROUP_TARGETS" | "DEVICE_TARGETS" => hash::<8, { size_of::<Target>() }>(data)?,
        other => bail!("{other}: this version does not know its sizes"),
    })
}

fn array<const SIZE: usize>(data: MapData) -> Result<Vec<Row>, MapError> {
    let array: Array<MapData, [u8; SIZE]> = Array::try_from(Map::Array(data))?;
    let mut rows = Vec::new();
    for (index, value) in (0_u32..).zip(array.iter()) {
        let value = value?;
        if value.iter().any(|&byte| byte != 0) {
            rows.push(row(&index.to_le_bytes(), &value));
        }
    }
    Ok(rows)
}

/// Values of all CPUs behind each other, as the kernel gives them.
fn per_cpu(data: MapData) -> Result<Vec<Row>, MapError> {
    let array: PerCpuArray<MapData, [u8; size_of::<Counters>()]> =
        PerCpuArray::try_from(Map::PerCpuArray(data))?;
    let mut rows = Vec::new();
    for (index, values) in (0_u32..).zip(array.iter()) {
        let values: Vec<u8> = values?.iter().flatten().copied().collect();
        if values.iter().any(|&byte| byte != 0) {
            rows.push(row(&index.to_le_bytes(), &values));
        }
    }
    Ok(rows)
}

fn hash<const KEY: usize, const VALUE: usize>(data: MapData) -> Result<Vec<Row>, MapError> {
    let hash: HashMap<MapData, [u8; KEY], [u8; VALUE]> = HashMap::try_from(Map::HashMap(data))?;
    hash.iter()
        .map(|entry| entry.map(|(key, value)| row(&key, &value)))
        .collect()
}

fn row(key: &[u8], value: &[u8]) -> Row {
    vec![("key", json!(hex(key))), ("value", json!(hex(value)))]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_their_order() {
        assert_eq!(hex(&0x1234_u32.to_le_bytes()), "34120000");
    }
}
