"""Loading a file with and without a file of packed weights, in C++: seconds, and memory that loading adds.

    git clone --branch v1.4.1 --depth 1 https://github.com/pytorch/executorch.git
    git -C executorch submodule update --init --depth 1 extension/llm/tokenizers
    python benchmarks/packed_weights.py FILE.pte --tokenizer tokenizer.json --executorch executorch

Compiles the function of the cards with ExecuTorch's own headers, links it against the libraries of the Python package,
and runs it in a process of its own for every line of the table. With `--load-only` no answer is generated: a file whose
delegates hold more than weights crashes there in ExecuTorch 1.4.1 (see `packable` in hubpub/cards/usage.py).
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import executorch
import torch

TEMPLATE = Path(__file__).parent.parent / "templates" / "partials" / "usage" / "cpp.md.jinja"
MAIN = r"""
#include <chrono>
#include <cstdio>
#include <cstring>

static long kilobytes(const char* what) {
  char line[256];
  long found = 0;
  FILE* status = std::fopen("/proc/self/status", "r");
  while (std::fgets(line, sizeof line, status)) {
    if (!std::strncmp(line, what, std::strlen(what))) {
      found = std::atol(line + std::strlen(what) + 1);
    }
  }
  std::fclose(status);
  return found;
}

int main(int count, char** given) {
  using executorch::extension::Module;
  const bool mlock = !std::strcmp(given[3], "mlock"), packed = count > 5;
  const long anonymous = kilobytes("RssAnon"), mapped = kilobytes("RssFile");
  const auto begin = std::chrono::steady_clock::now();
  auto tokenizer = llm::load_tokenizer(given[2]);
  auto runner = packed
      ? load_packed(given[1], std::move(tokenizer), given[5])
      : llm::create_text_llm_runner(given[1], std::move(tokenizer), std::nullopt, -1.0f, "forward",
            mlock ? Module::LoadMode::MmapUseMlockIgnoreErrors : Module::LoadMode::Mmap);
  if (!runner || runner->load() != executorch::runtime::Error::Ok) {
    return 1;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const long after = kilobytes("RssAnon") - anonymous, file = kilobytes("RssFile") - mapped;
  const long locked = kilobytes("VmLck");
  llm::GenerationConfig config;
  config.echo = false;
  config.temperature = 0.0f;
  config.max_new_tokens = 24;
  std::string answer;
  if (*given[4] && runner->generate(given[4], config, [&](const std::string& piece) { answer += piece; }) !=
      executorch::runtime::Error::Ok) {
    return 2;
  }
  const long end = kilobytes("RssAnon") - anonymous, read = kilobytes("RssFile") - mapped;
  std::fprintf(stderr, "\nMEASURED %.3f %ld %ld %ld %ld %ld %zu\n", seconds, after, file, locked, end, read,
      std::hash<std::string>()(answer));
}
"""


def on_cards() -> str:
    """The code with `load_packed`, as templates have it."""
    blocks = re.findall(r"```cpp\n(.*?)```", TEMPLATE.read_text("utf-8"), re.DOTALL)
    (code,) = [one for one in blocks if "load_packed" in one]
    return code


def build(code: str, source: Path, folder: Path) -> Path:
    """The program in `folder`, of the cards' `code` and headers at `source`."""
    (folder / "main.cpp").write_text(code + MAIN)
    package, libraries = Path(next(iter(executorch.__path__))), Path(torch.__file__).parent / "lib"
    python = Path(sysconfig.get_config_var("LIBDIR")) / sysconfig.get_config_var("LDLIBRARY")
    parts = ("extension/llm/runner/_llm_runner.*.so", "extension/pybindings/_portable_lib.*.so")
    parts += ("extension/llm/custom_ops/libcustom_ops_aot_lib*", "kernels/quantized/libquantized_ops_aot_lib*")
    linked = [*(str(next(package.glob(part))) for part in parts), str(python)]
    runs = [f"-Wl,-rpath,{Path(one).parent}" for one in linked] + [
        f"-Wl,-rpath,{libraries}",
        f"-Wl,-rpath-link,{libraries}",
    ]
    includes = (source.parent, source / "extension/llm/tokenizers/include", source / "runtime/core/portable_type/c10")
    flags = ["-std=c++17", "-O2", "-w", "-DC10_USING_CUSTOM_GENERATED_MACROS", *(f"-I{one}" for one in includes)]
    program = folder / "packed"
    command = ["c++", *flags, str(folder / "main.cpp"), "-o", str(program), "-Wl,--no-as-needed", *linked, *runs]
    subprocess.run(command, check=True)
    return program


def measure(program: Path, *arguments: str) -> list[float]:
    done = subprocess.run([program, *arguments], capture_output=True, check=True)
    return [float(one) for one in re.search(rb"MEASURED (.*)", done.stderr)[1].split()]  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pte", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--executorch", type=Path, required=True, help="its sources at the version of the card")
    parser.add_argument("--load-only", action="store_true")
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        program = build(on_cards(), given.executorch.absolute(), Path(place))
        packed = Path(place) / "packed.bin"
        prompt = "" if given.load_only else given.prompt
        common = (str(given.pte), str(given.tokenizer))
        kinds = {"mapped and locked (the default)": ("mlock",), "mapped": ("mmap",)}
        answers = set()
        print("| loaded | seconds | anonymous | mapped | locked | after an answer: anonymous | mapped |")
        print("|---|---:|---:|---:|---:|---:|---:|")

        def row(name: str, runs: list[list[float]]) -> None:
            seconds, *memory = (statistics.median(column) for column in list(zip(*runs, strict=True))[:-1])
            answers.update(int(run[-1]) for run in runs)
            after, file, locked, end, read = (f"{one / 1000:.0f} MB" for one in memory)
            print(f"| {name} | {seconds:.2f} | {after} | {file} | {locked} | {end} | {read} |")

        for name, (mode,) in kinds.items():
            row(name, [measure(program, *common, mode, prompt) for _ in range(given.runs)])
        row("packed weights, first start", [measure(program, *common, "mmap", prompt, str(packed))])
        row(
            "packed weights, later starts",
            [measure(program, *common, "mmap", prompt, str(packed)) for _ in range(given.runs)],
        )
        same = "the same" if len(answers) == 1 else "NOT the same"
        print(f"\nPacked weights: {packed.stat().st_size / 1e6:.0f} MB. Answers are {same}.")


if __name__ == "__main__":
    main()
