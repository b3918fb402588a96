// Declarations of ExecuTorch 1.4.1 that a card's C++ uses, for linking it against the libraries of the Python package,
// which come without these headers. tests/cards/signatures.toml says where each stands in ExecuTorch's sources.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace tokenizers {
class Tokenizer {
 public:
  virtual ~Tokenizer() {}
};
} // namespace tokenizers

namespace executorch::extension {
namespace module {
class Module {
 public:
  enum class LoadMode { File, Mmap, MmapUseMlock, MmapUseMlockIgnoreErrors, MmapUseMadvise };
};
} // namespace module
using module::Module;

namespace llm {
class TextLLMRunner;

std::unique_ptr<tokenizers::Tokenizer> load_tokenizer(
    const std::string& tokenizer_path,
    std::unique_ptr<std::vector<std::string>> special_tokens = nullptr,
    std::optional<std::string> pattern = std::nullopt,
    size_t bos_token_index = 0,
    size_t eos_token_index = 1);

std::unique_ptr<TextLLMRunner> create_text_llm_runner(
    const std::string& model_path,
    std::unique_ptr<::tokenizers::Tokenizer> tokenizer,
    std::optional<const std::string> data_path,
    float temperature = -1.0f,
    const std::string& method_name = "forward",
    Module::LoadMode load_mode = Module::LoadMode::MmapUseMlockIgnoreErrors);
} // namespace llm
} // namespace executorch::extension
