//! Requests for random bytes across a save and a load.

use super::*;
use crate::devices::virtio::testkit::HIGH;
use crate::devices::virtio::testkit::rig::Rig;
use std::collections::BTreeSet;

#[test]
fn entropy_saves_and_loads_with_requests_in_flight() {
    let mut rig = Rig::start(Box::new(Entropy::new(None)));
    let mut heads = BTreeSet::new();
    for number in 0..u64::from(QUEUE_SIZE) {
        heads.insert(u32::from(rig.rings[0].offer(&[(HIGH + (number << 16), 1 << 16, true)])));
    }
    rig.kick(0);
    rig.turn();
    let mut used = rig.rings[0].take_all_used();
    rig.pause();
    used.extend(rig.rings[0].take_all_used());
    assert!((1..heads.len()).contains(&used.len()), "{} were answered before", used.len());
    let mut rig = rig.restore(Box::new(Entropy::new(None)));
    rig.settle();
    used.extend(rig.rings[0].take_all_used());
    assert_eq!(used.len(), heads.len(), "each once");
    assert_eq!(used.iter().map(|&(head, _)| head).collect::<BTreeSet<_>>(), heads);
    assert!(used.iter().all(|&(_, written)| written == 1 << 16));
    let all = (0..u64::from(QUEUE_SIZE)).map(|number| rig.read(HIGH + (number << 16), 1 << 16));
    assert!(all.into_iter().all(|bytes| bytes.iter().any(|&byte| byte != 0)));
    rig.is_well();
}

crate::devices::virtio::testkit::rig::over_pci!(entropy_saves_and_loads_with_requests_in_flight,);
