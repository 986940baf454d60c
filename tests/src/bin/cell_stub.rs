//! In cells: the least that can be executed there. Says when it began, on the control socket or else on standard output, and
//! sleeps until it is killed. A file of it that is padded to a monitor's size stands for that monitor in the benchmark.

use husk_tests::bench::cells::stub;
use husk_tests::bench::stages::now_ns;

fn main() {
    stub(now_ns());
}
