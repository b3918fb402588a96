"""Looks up what the code on the cards takes from ExecuTorch in ExecuTorch's sources, at the version of the cards.

    git clone --bare --filter=blob:none https://github.com/pytorch/executorch.git executorch.git
    python benchmarks/usage_sources.py executorch.git

Reads tests/cards/signatures.toml, which the tests hold the cards to: every text it quotes must stand in the file it
names. Exits with 1 and a line for each that does not.

With a JDK and a Kotlin compiler, the Kotlin of every card is compiled with ExecuTorch's own. One is in a package of
PyPI:

    pip download --no-deps kotlin-jupyter-kernel && unzip kotlin_jupyter_kernel-*.whl -d kotlin
    python benchmarks/usage_sources.py executorch.git --kotlin kotlin/run_kotlin_kernel/jars

Where tree-sitter and tree-sitter-swift are installed, the Swift of every card is parsed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

CARDS = Path(__file__).parent.parent / "cards"
KOTLIN = "extension/android/executorch_android/src/main/java/org/pytorch/executorch"
# What ExecuTorch's Kotlin takes from Android and from fbjni, as far as the compiler asks for it.
STUBS = {
    "com/facebook/jni/HybridData.java": "public class HybridData { public void resetNative() {} "
    "public boolean isValid() { return true; } }",
    "com/facebook/jni/annotations/DoNotStrip.java": "public @interface DoNotStrip {}",
    "com/facebook/soloader/nativeloader/NativeLoader.java": "public class NativeLoader { "
    "public static boolean isInitialized() { return true; } public static void init(Object it) {} "
    "public static boolean loadLibrary(String name) { return true; } }",
    "com/facebook/soloader/nativeloader/SystemDelegate.java": "public class SystemDelegate {}",
    "android/util/Log.java": "public class Log { public static int e(String tag, String text) { return 0; } }",
}
SIGNATURES = Path(__file__).parent.parent / "tests" / "cards" / "signatures.toml"


def text_of(git: Path, revision: str, file: str) -> str:
    """A file of a repository at a revision, with every run of spaces as one. Raises CalledProcessError."""
    command = ["git", "-C", str(git), "show", f"{revision}:{file}"]
    return squeezed(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def uncompiled(git: Path, revision: str, jars: Path) -> list[str]:
    """What a Kotlin compiler says against the Kotlin of the cards, compiled with ExecuTorch's own."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name, code in STUBS.items():
            path = root / "stubs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"package {'.'.join(name.split('/')[:-1])};\n{code}\n")
        subprocess.run(["javac", "-d", root / "classes", *(root / "stubs").rglob("*.java")], check=True)
        command = ["git", "-C", str(git), "ls-tree", "-r", "--name-only", revision, KOTLIN]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        sources = [
            root / Path(name).name
            for name in names
            if re.search(r"executorch/(extension/llm/|annotations/)?\w+\.kt$", name)
        ]
        for path in sources:
            (name,) = (one for one in names if Path(one).name == path.name)
            shown = subprocess.run(
                ["git", "-C", str(git), "show", f"{revision}:{name}"], capture_output=True, check=True
            )
            path.write_bytes(shown.stdout)
        for number, card in enumerate(sorted(CARDS.glob("*/README.md"))):
            for code in re.findall(r"```kotlin\n(.*?)```", card.read_text("utf-8"), re.DOTALL):
                sources.append(root / f"Card{number}.kt")
                sources[-1].write_text(f"package card{number}\n{code}")
        library = next(jars.glob("kotlin-stdlib-*.jar"))
        compiler = [
            "java",
            "-cp",
            os.pathsep.join(map(str, jars.glob("*.jar"))),
            "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
        ]
        flags = ["-no-stdlib", "-no-reflect", "-nowarn", "-d", root / "out.jar"]
        path = f"{root / 'classes'}{os.pathsep}{library}"
        done = subprocess.run(
            [*compiler, *flags, "-classpath", path, *sources], capture_output=True, text=True, check=False
        )
        cards = sum(one.name.startswith("Card") for one in sources)
        print(f"Kotlin of {cards} cards: {'compiled' if done.returncode == 0 else 'not compiled'}")
        return [] if done.returncode == 0 else [one for one in done.stderr.splitlines() if "error:" in one]


def unparsed() -> list[str]:
    """The Swift of the cards that is none, where `pip install tree-sitter tree-sitter-swift` brought a grammar."""
    try:
        import tree_sitter
        import tree_sitter_swift
    except ImportError:
        return []
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))
    wrong, seen = [], 0
    for card in sorted(CARDS.glob("*/README.md")):
        for code in re.findall(r"```swift\n(.*?)```", card.read_text("utf-8"), re.DOTALL):
            seen += 1
            if parser.parse(code.encode()).root_node.has_error:
                wrong.append(f"swift: {card.parent.name}: the code does not parse")
    print(f"Swift of {seen} cards: {'parsed' if not wrong else 'not parsed'}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("git", type=Path, help="a clone of ExecuTorch, bare or not")
    parser.add_argument("--version", default="1.4.1", help="the version the cards name")
    parser.add_argument("--kotlin", type=Path, metavar="JARS", help="a folder with the jars of a Kotlin compiler")
    given = parser.parse_args()
    looked_up, missing = 0, []
    for language, table in tomllib.loads(SIGNATURES.read_text("utf-8")).items():
        for claim in table["claim"]:
            revision = claim.get("revision", f"v{given.version}")
            try:
                text = text_of(given.git, revision, claim["file"])
            except subprocess.CalledProcessError as error:
                missing.append(f"{language}: {claim['file']} at {revision}: {error.stderr.strip().splitlines()[-1]}")
                continue
            for quoted in claim["source"]:
                looked_up += 1
                if squeezed(quoted) not in text:
                    missing.append(f"{language}: {claim['file']} at {revision} does not say: {quoted}")
    missing += unparsed()
    if given.kotlin:
        missing += uncompiled(given.git, f"v{given.version}", given.kotlin)
    print("\n".join(missing) or f"all {looked_up} texts stand where they are said to")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
