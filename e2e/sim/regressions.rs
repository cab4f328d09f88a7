//! Seeds that broke a rule once, with what was wrong; they stay.

use super::guards::Guards;
use super::script::{Mix, Script};
use super::simulation::run;

const KEPT: [(&str, Mix, u64); 21] = [
    ("a lost answer, then a report that the cache agrees with: the lost patch was there all the same", Mix::All, 101),
    ("a lost answer, and the patch committed after the next report was acknowledged", Mix::All, 119),
    ("a writer died before its event, and the next transition made the status forget it", Mix::All, 138),
    ("the same, with the next transition written by a fallback", Mix::All, 164),
    ("a replica that nobody talks to any more believed its cache", Mix::All, 433),
    ("one that saw nobody in its old list took itself for alone", Mix::All, 639),
    ("alone in the view is not alone: the one that leaves still takes in reports", Mix::Rolling, 22),
    ("two reports of a device at one replica were queued in the wrong order", Mix::All, 820),
    ("a patch whose answer was lost was forgotten when nothing was left to write, and so was its event", Mix::All, 895),
    ("the same, after the report was overtaken", Mix::All, 963),
    ("a stop gave up a patch in doubt and acknowledged what came after it", Mix::All, 1_218),
    ("a report was overtaken while it waited for leave to be written", Mix::All, 1_510),
    ("a late report of an earlier boot", Mix::Cuts, 215),
    (
        "an owner that started anew, heard nobody and had a watch that stood still believed its first list",
        Mix::All,
        2_487,
    ),
    ("a process that was stopped held an old boot's report", Mix::All, 40),
    (
        "a turn was put off and acknowledged by a cache that did not know what another replica had written",
        Mix::All,
        1_576,
    ),
    ("the same, by the first report of a boot", Mix::All, 1_986),
    ("who came back was not told of a report after which the device had asked", Mix::All, 245),
    ("one that had slept took what it heard before for new", Mix::All, 1_830),
    ("a cache was believed after a stop had given up what the report before had changed", Mix::Moves, 1),
    ("the same, by a replica that is always alone", Mix::All, 4_126),
];

#[test]
fn kept_seeds_hold() {
    for (what, mix, seed) in KEPT {
        let report = run(&Script::new(seed, mix), Guards::default(), false);
        assert!(report.violation.is_none(), "{what}: {mix:?} {seed}: {:?}", report.violation);
    }
}
