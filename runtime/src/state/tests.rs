use super::*;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pump {
    strokes: u64,
    valves: Vec<u16>,
    open: bool,
}

const PUMP: Format = Format { id: "pump", version: 3 };
const DRUM: Format = Format { id: "drum", version: 3 };

fn pump() -> Pump {
    Pump { strokes: 1 << 40, valves: vec![1, 2, 700], open: true }
}

#[test]
fn what_is_saved_is_loaded() {
    let sections = [PUMP.section(&pump()), DRUM.section(&())];
    let read = from_bytes(&to_bytes(&sections)).unwrap();
    assert_eq!(read, sections);
    assert_eq!(PUMP.parse::<Pump>(&read[0]), Ok(pump()));
    assert_eq!(DRUM.parse_empty(&read[1]), Ok(()));
    assert_eq!(from_bytes(&to_bytes(&[])), Ok(vec![]));
}

#[test]
fn another_object_and_another_version_are_refused_by_name() {
    let wrong = DRUM.parse::<Pump>(&PUMP.section(&pump())).unwrap_err();
    assert_eq!(wrong.to_string(), r#"drum: there is a section "pump"; "drum" is expected"#);
    let newer = Format { version: 4, ..PUMP }.section(&pump());
    let wrong = PUMP.parse::<Pump>(&newer).unwrap_err();
    assert_eq!(wrong.to_string(), "pump: version 4 is unknown; 3 can be loaded");
    assert_eq!(wrong.inside("engine").to_string(), "engine: pump: version 4 is unknown; 3 can be loaded");
}

#[test]
fn bytes_that_end_early_or_late_are_refused() {
    let section = PUMP.section(&pump());
    for length in 0..section.bytes.len() {
        let short = Section { bytes: section.bytes[..length].to_vec(), ..section.clone() };
        assert!(matches!(PUMP.parse::<Pump>(&short), Err(LoadError::Malformed { .. })), "{length}");
    }
    let mut long = section.clone();
    long.bytes.extend([0, 0]);
    let trailing = LoadError::Trailing { section: "pump".into(), bytes: 2 };
    assert_eq!(PUMP.parse::<Pump>(&long), Err(trailing));
    long.bytes = vec![0; LONGEST_SECTION + 1];
    assert!(matches!(PUMP.parse::<Pump>(&long), Err(LoadError::TooLong { .. })));
    let list = to_bytes(&[section.clone(), section]);
    for length in 0..list.len() {
        assert!(from_bytes(&list[..length]).is_err(), "{length}");
    }
    assert!(matches!(from_bytes(&[&list[..], &[7]].concat()), Err(LoadError::Trailing { bytes: 1, .. })));
    assert!(matches!(from_bytes(&vec![0; LONGEST_LIST + 1]), Err(LoadError::TooLong { .. })));
}

/// A count that does not match what it counts, as large as a count can be, costs no memory.
#[test]
fn a_length_that_lies_is_refused() {
    for length in [4_u64, 100, u64::from(u32::MAX), u64::MAX] {
        let bytes = postcard::to_allocvec(&(1_u64, length, 1_u16, 2_u16, 700_u16, true)).unwrap();
        let section = Section { bytes, ..PUMP.section(&()) };
        assert!(matches!(PUMP.parse::<Pump>(&section), Err(LoadError::Malformed { .. })), "{length}");
        assert!(from_bytes(&postcard::to_allocvec(&length).unwrap()).is_err());
    }
}

#[test]
fn lists_are_bounded() {
    let many = vec![DRUM.section(&()); MOST_SECTIONS + 1];
    assert!(matches!(from_bytes(&to_bytes(&many)), Err(LoadError::Count { .. })));
    assert_eq!(from_bytes(&to_bytes(&many[1..])).unwrap().len(), MOST_SECTIONS);
    let id = Section { id: "x".repeat(LONGEST_ID + 1), version: 0, bytes: vec![] };
    assert!(matches!(from_bytes(&to_bytes(&[id])), Err(LoadError::TooLong { .. })));
    let bytes = Section { id: "x".into(), version: 0, bytes: vec![0; LONGEST_SECTION + 1] };
    assert!(matches!(from_bytes(&to_bytes(&[bytes])), Err(LoadError::TooLong { .. })));
}
