//! Where the fields of the running kernel's structures are, from the BTF that it gives out. A
//! program that reads a field gets its offset from here: no offset is written down anywhere.
//!
//! Format: Documentation/bpf/btf.rst of the kernel.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use aya::{Btf, Endianness};

/// Where a kernel gives out its BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// Bytes of the header that is written here.
const HEADER: u32 = 24;
/// How deep structures without a name are in each other, at most.
const NESTED: u32 = 8;

// Kinds of types, include/uapi/linux/btf.h.
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const FUNC: u32 = 12;

/// The types of a kernel.
pub struct Layout {
    bytes: Vec<u8>,
    types: Range<usize>,
    strings: Range<usize>,
}

/// What a kernel's types say to those who ask for fields and functions.
pub struct Types {
    /// Where fields are.
    pub layout: Layout,
    /// Functions and tracepoints, those that were asked for.
    pub functions: Btf,
}

impl Types {
    /// Of the kernel that runs. It takes a while: a kernel has a hundred thousand types.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub fn of_this_kernel(functions: &[&str]) -> Result<Self, String> {
        let why = |error: io::Error| format!("failed to read the kernel's types: {error}");
        let layout = Layout::of_this_kernel().map_err(why)?;
        let functions = layout.only(functions).map_err(why)?;
        Ok(Self { layout, functions })
    }
}

/// A field whose place is asked for.
pub type Field = (&'static str, &'static str);

impl Layout {
    /// Of the kernel that runs: an error when it gives out none (CONFIG_DEBUG_INFO_BTF), or one in a form that is not known.
    fn of_this_kernel() -> io::Result<Self> {
        let bytes = fs::read(Path::new(VMLINUX)).map_err(|error| {
            io::Error::new(error.kind(), format!("failed to read {VMLINUX}: {error}"))
        })?;
        Self::parse(bytes).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{VMLINUX} has a form that this agent does not know"),
            )
        })
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let magic = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
        let header = word(&bytes, 4)? as usize;
        let part = |offset: usize| {
            let start = header.checked_add(word(&bytes, offset)? as usize)?;
            let end = start.checked_add(word(&bytes, offset + 4)? as usize)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let (types, strings) = (part(8)?, part(16)?);
        (magic == MAGIC).then_some(Self {
            bytes,
            types,
            strings,
        })
    }

    /// For aya, which finds functions and tracepoints in it by their names: types with the numbers that
    /// they have in this kernel, of which only those of these names say anything. aya reads through all
    /// names for each that it looks for, and a kernel has a hundred thousand.
    ///
    /// # Errors
    /// When aya does not know this form.
    pub fn only(&self, names: &[&str]) -> io::Result<Btf> {
        let mut strings = vec![0];
        let offsets: Vec<_> = (names.iter())
            .map(|name| {
                let offset = strings.len() as u32;
                strings.extend_from_slice(name.as_bytes());
                strings.push(0);
                offset
            })
            .collect();
        let mut types = Vec::new();
        for at in self.walk() {
            let [kind, ..] = self.info(at);
            let is_named = kind == FUNC || kind == TYPEDEF;
            let name = is_named.then(|| self.name(at)).flatten();
            let asked = names
                .iter()
                .position(|asked| name == Some(asked.as_bytes()));
            let same = asked.and_then(|asked| {
                let [info, of] = [4, 8].map(|offset| word(&self.bytes, at + offset));
                Some([*offsets.get(asked)?, info?, of?])
            });
            types.extend(same.unwrap_or([0, FWD << 24, 0]));
        }
        let length = size_of_val(types.as_slice()) as u32;
        let header = [HEADER, 0, length, length, strings.len() as u32];
        let words = header.iter().chain(&types);
        let mut bytes: Vec<u8> = MAGIC.to_ne_bytes().into();
        bytes.extend([1, 0]);
        bytes.extend(words.flat_map(|word| word.to_ne_bytes()));
        bytes.extend(strings);
        Btf::parse(&bytes, Endianness::default()).map_err(io::Error::other)
    }

    /// Where each type begins.
    fn walk(&self) -> impl Iterator<Item = usize> {
        let next = |at: &usize| {
            let [kind, count, _] = self.info(*at);
            Some(at + 12 + trailing(kind, count as usize)?)
        };
        let first = Some(self.types.start);
        let inside = |at: &usize| at + 12 <= self.types.end;
        std::iter::successors(first, next).take_while(inside)
    }

    /// Kind, count and flag of the type there.
    fn info(&self, at: usize) -> [u32; 3] {
        let info = word(&self.bytes, at + 4).unwrap_or_default();
        [info >> 24 & 0x1f, info & 0xffff, info >> 31]
    }

    /// Offsets in bytes of fields that are in their structures, directly or in parts of them that have no
    /// name; `None` where there is no such. In one pass: a kernel has a hundred thousand types.
    pub fn offsets(&self, fields: &[Field]) -> Vec<Option<u32>> {
        let types: Vec<_> = self.walk().collect();
        let mut found = vec![None; fields.len()];
        // The first structure of a name is the one that is meant.
        let mut seen = vec![false; fields.len()];
        for &at in &types {
            let [kind, ..] = self.info(at);
            if kind != STRUCT {
                continue;
            }
            let name = self.name(at);
            let places = found.iter_mut().zip(&mut seen).zip(fields);
            for ((found, seen), (structure, field)) in places {
                if !*seen && name == Some(structure.as_bytes()) {
                    *seen = true;
                    *found = self.member(&types, at, field, NESTED);
                }
            }
            if !seen.contains(&false) {
                break;
            }
        }
        found
    }

    /// Offset of a field of the structure or union there. `types` is where each type begins, from number 1.
    fn member(&self, types: &[usize], at: usize, field: &str, nested: u32) -> Option<u32> {
        let [_, count, has_bit_fields] = self.info(at);
        for member in (at + 12..).step_by(12).take(count as usize) {
            let bits = word(&self.bytes, member + 8)?;
            // The upper byte is the size of a bit field then.
            let bits = if has_bit_fields != 0 {
                bits & 0xff_ffff
            } else {
                bits
            };
            let name = self.name(member)?;
            if name == field.as_bytes() {
                return Some(bits / 8);
            }
            if name.is_empty() && nested > 0 {
                let number = word(&self.bytes, member + 4)? as usize;
                let part = *types.get(number.checked_sub(1)?)?;
                let [kind, ..] = self.info(part);
                if (kind == STRUCT || kind == UNION)
                    && let Some(inside) = self.member(types, part, field, nested - 1)
                {
                    return bits.checked_div(8)?.checked_add(inside);
                }
            }
        }
        None
    }

    /// The name whose offset is at `at`.
    fn name(&self, at: usize) -> Option<&[u8]> {
        let start = self.strings.start + word(&self.bytes, at)? as usize;
        let rest = self.bytes.get(start..self.strings.end)?;
        rest.split(|&byte| byte == 0).next()
    }
}

/// Bytes behind the 12 that each type has.
fn trailing(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // INT, VAR, DECL_TAG
        1 | 14 | 17 => 4,
        // ARRAY
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64
        4 | 5 | 15 | 19 => 12 * count,
        // ENUM, FUNC_PROTO
        6 | 13 => 8 * count,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use aya_obj::btf::BtfKind;

    use super::*;

    /// An int, then `struct a { int x; int y; }`, then `struct b { int y; }` with bit fields, then functions
    /// `x` and `y` and a typedef `b`, then `struct z { int x; union { struct { int y; }; }; }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0a\0x\0y\0b\0z\0";
        let types: &[u32] = &[
            1,
            1 << 24,
            4,
            32, // int
            5,
            STRUCT << 24 | 2,
            8,
            7,
            1,
            0,
            9,
            1,
            32, // a
            11,
            1 << 31 | STRUCT << 24 | 1,
            4,
            9,
            1,
            3 << 24 | 16, // b
            7,
            FUNC << 24,
            1, // x
            9,
            FUNC << 24,
            1, // y
            11,
            TYPEDEF << 24,
            1, // b
            0,
            STRUCT << 24 | 1,
            4,
            9,
            1,
            0, // the inner part of z
            0,
            UNION << 24 | 1,
            4,
            0,
            7,
            0, // the outer one
            13,
            STRUCT << 24 | 2,
            8,
            7,
            1,
            0,
            0,
            8,
            32, // z
        ];
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        let length = (types.len() * 4) as u32;
        for word in [24, 0, length, length, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn a_field_is_found_where_the_kernel_has_it() {
        let layout = Layout::parse(sample()).expect("well-formed");
        for (field, expected) in [
            (("a", "x"), Some(0)),
            (("a", "y"), Some(4)),
            (("b", "y"), Some(2)),
            (("b", "x"), None),
            (("c", "x"), None),
            (("z", "y"), Some(4)),
            (("z", "x"), Some(0)),
            (("z", "z"), None),
        ] {
            assert_eq!(layout.offsets(&[field]), [expected], "{field:?}");
        }
    }

    #[test]
    fn one_pass_finds_the_fields_of_several_structures() {
        let layout = Layout::parse(sample()).expect("well-formed");
        let fields = [("b", "y"), ("c", "x"), ("a", "y"), ("a", "x")];
        let expected = [Some(2), None, Some(4), Some(0)];
        assert_eq!(layout.offsets(&fields), expected);
    }

    #[test]
    fn functions_and_typedefs_keep_their_numbers_and_others_have_no_names() {
        let layout = Layout::parse(sample()).expect("well-formed");
        let types = layout.only(&["y", "b", "absent"]).expect("well-formed");
        for (name, kind, id) in [
            ("y", BtfKind::Func, Some(5)),
            ("b", BtfKind::Typedef, Some(6)),
            ("x", BtfKind::Func, None),
            ("b", BtfKind::Struct, None),
            ("absent", BtfKind::Func, None),
        ] {
            let found = types.id_by_type_name_kind(name, kind).ok();
            assert_eq!(found, id, "{name} {kind}");
        }
    }

    #[test]
    fn what_is_cut_off_is_refused_and_not_read_past() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(
                Layout::parse(whole[..length].to_vec()).is_none(),
                "{length}"
            );
        }
        let mut unknown = whole;
        // The kind of the first type.
        unknown[24 + 7] = 31;
        let layout = Layout::parse(unknown).expect("the header is sound");
        assert_eq!(layout.offsets(&[("a", "x")]), [None]);
    }
}
