//! A filter that decides by the number of the system call alone, as a search tree.
//!
//! The kernel goes through a filter once for every number when it is loaded, and translates all of it: a chain of 300
//! comparisons takes longer to load than a command takes to start. In a tree each number needs as many comparisons as the
//! number of ranges has binary digits.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// Where the number stands in what a filter sees (`struct seccomp_data`, seccomp(2)).
const NUMBER_AT: u32 = 0;
/// Where the instruction set stands.
const ARCH_AT: u32 = 4;
/// AUDIT_ARCH_X86_64 (linux/audit.h): the machine's number in ELF, with the bits for 64 bits and for little-endian.
const ARCH: u32 = 0xc000_0000 | libc::EM_X86_64 as u32;
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// What becomes of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// This filter lets it pass.
    Pass,
    /// It fails with this error.
    Fail(i32),
}

impl Verdict {
    fn code(self) -> u32 {
        match self {
            Self::Pass => libc::SECCOMP_RET_ALLOW,
            Self::Fail(errno) => libc::SECCOMP_RET_ERRNO | (errno as u32 & libc::SECCOMP_RET_DATA),
        }
    }
}

/// The filter that decides so, and `otherwise` about all other numbers. Who calls through another instruction set is killed.
pub fn program(verdicts: &BTreeMap<i64, Verdict>, otherwise: Verdict) -> BpfProgram {
    let mut program = vec![
        instruction(LOAD, 0, 0, ARCH_AT),
        instruction(EQUAL, 1, 0, ARCH),
        returning(libc::SECCOMP_RET_KILL_PROCESS),
        instruction(LOAD, 0, 0, NUMBER_AT),
    ];
    program.extend(tree(&ranges(verdicts, otherwise)));
    program
}

/// A range of numbers: where it begins, and what becomes of them. It ends where the next one begins.
type Range = (u32, Verdict);

fn ranges(verdicts: &BTreeMap<i64, Verdict>, otherwise: Verdict) -> Vec<Range> {
    let mut ranges: Vec<Range> = vec![(0, otherwise)];
    let mut begin = |at: u32, verdict: Verdict| match ranges.last_mut() {
        Some(last) if last.0 == at => last.1 = verdict,
        Some(last) if last.1 == verdict => {}
        _ => ranges.push((at, verdict)),
    };
    // No number is negative, and none is as large as a u32 can be.
    for (&number, &verdict) in verdicts {
        let number = number as u32;
        begin(number, verdict);
        begin(number + 1, otherwise);
    }
    // A range that was opened in vain may stand beside one of the same verdict now.
    ranges.dedup_by(|later, earlier| later.1 == earlier.1);
    ranges
}

fn tree(ranges: &[Range]) -> BpfProgram {
    let [.., last] = ranges else { return Vec::new() };
    if ranges.len() == 1 {
        return vec![returning(last.1.code())];
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (begin, low, high) = (high[0].0, tree(low), tree(high));
    let mut program = match u8::try_from(low.len()) {
        Ok(distance) => vec![instruction(AT_LEAST, distance, 0, begin)],
        Err(_) => vec![instruction(AT_LEAST, 0, 1, begin), instruction(JUMP, 0, 0, low.len() as u32)],
    };
    program.extend(low);
    program.extend(high);
    program
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn returning(code: u32) -> sock_filter {
    instruction(RETURN, 0, 0, code)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer to a call, and how many instructions it goes through.
    fn run(program: &[sock_filter], arch: u32, number: u32) -> (u32, usize) {
        let (mut at, mut value, mut steps) = (0, 0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            steps += 1;
            at += 1;
            match code {
                LOAD if k == ARCH_AT => value = arch,
                LOAD if k == NUMBER_AT => value = number,
                EQUAL => at += usize::from(if value == k { jt } else { jf }),
                AT_LEAST => at += usize::from(if value >= k { jt } else { jf }),
                JUMP => at += k as usize,
                RETURN => return (k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn check(verdicts: &BTreeMap<i64, Verdict>, otherwise: Verdict) {
        let program = program(verdicts, otherwise);
        for number in (0..2_100).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
            let expected = verdicts.get(&i64::from(number)).copied().unwrap_or(otherwise);
            assert_eq!(run(&program, ARCH, number).0, expected.code(), "number {number}");
            assert_eq!(run(&program, ARCH ^ 1, number).0, libc::SECCOMP_RET_KILL_PROCESS);
        }
    }

    #[test]
    fn every_number_gets_its_verdict() {
        let all = [Verdict::Pass, Verdict::Fail(libc::EPERM), Verdict::Fail(libc::ENOSYS)];
        for otherwise in all {
            check(&BTreeMap::new(), otherwise);
            // Every second and every third number: more ranges than a conditional jump reaches over.
            for every in [1, 2, 3, 7, 100] {
                check(&(0..1_500).step_by(every).map(|n| (n, all[n as usize % 3])).collect(), otherwise);
                check(&(5..1_500).step_by(every).map(|n| (n, Verdict::Pass)).collect(), otherwise);
            }
        }
        check(&super::super::verdicts(false), Verdict::Fail(libc::ENOSYS));
        check(&super::super::verdicts(true), Verdict::Fail(libc::ENOSYS));
    }

    #[test]
    fn what_the_workload_may_call_is_found_in_a_few_steps() {
        let verdicts = super::super::verdicts(false);
        let program = program(&verdicts, Verdict::Fail(libc::ENOSYS));
        let steps = (0..600).map(|number| run(&program, ARCH, number).1).max();
        assert!(steps.is_some_and(|steps| steps <= 13), "{steps:?}");
        assert!(program.len() < 300, "{} instructions", program.len());
    }
}
