//! Elements of the maps as bytes, in hexadecimal. Elements of arrays that are all zero are not
//! in use, and left out.

use std::mem::size_of;
use std::path::Path;

use anyhow::{Context as _, bail};
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use chaos_abi::clock::ClockRule;
use chaos_abi::counters::Counters;
use chaos_abi::network::{Net, NetKey, PeerKey, Rule, State, Target};
use serde_json::json;

use super::decode::Row;

/// The elements of a map that are in use.
pub(super) fn dump(directory: &Path, name: &str) -> anyhow::Result<Vec<Row>> {
    let Some(elements) = elements(name) else {
        bail!("{name}: this version does not know its sizes");
    };
    let path = directory.join(name);
    let data =
        MapData::from_pin(&path).with_context(|| format!("failed to open {}", path.display()))?;
    Ok(elements(data)?)
}

/// What reads the elements of one map.
type Elements = fn(MapData) -> Result<Vec<Row>, MapError>;

/// That of the map of this name.
fn elements(name: &str) -> Option<Elements> {
    Some(match name {
        "CONTROL" | "DEPTHS" | "CLOCK_DEPTHS" => array::<4>,
        "ARMED" | "WAITING" | "LATENESS" => array::<8>,
        "STATE" => array::<{ size_of::<State>() }>,
        "RULES" => array::<{ size_of::<Rule>() }>,
        "CLOCK_RULES" => array::<{ size_of::<ClockRule>() }>,
        "COUNTERS" => per_cpu,
        "PEERS" => hash::<{ size_of::<PeerKey>() }, 1>,
        "NETS" => nets,
        "CGROUP_TARGETS" | "DEVICE_TARGETS" | "CLOCK_TARGETS" => hash::<8, { size_of::<Target>() }>,
        _ => return None,
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

/// A key is the length of its prefix and then the bits, as the kernel gives them.
fn nets(data: MapData) -> Result<Vec<Row>, MapError> {
    let nets: LpmTrie<MapData, [u8; size_of::<NetKey>()], [u8; size_of::<Net>()]> =
        LpmTrie::try_from(Map::LpmTrie(data))?;
    nets.iter()
        .map(|entry| {
            let (key, value) = entry?;
            let prefix = key.prefix_len().to_le_bytes();
            Ok(row(&[&prefix, &key.data()[..]].concat(), &value))
        })
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
    use crate::kernel::maps::NAMES;

    #[test]
    fn each_map_can_be_read() {
        for name in NAMES {
            assert!(elements(name).is_some(), "{name}");
        }
    }

    #[test]
    fn bytes_keep_their_order() {
        assert_eq!(hex(&0x1234_u32.to_le_bytes()), "34120000");
    }
}
