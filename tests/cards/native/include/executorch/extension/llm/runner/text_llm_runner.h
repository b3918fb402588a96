// Declarations of ExecuTorch 1.4.1: see llm_runner_helper.h. The order of fields and virtual functions is its own.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <executorch/runtime/core/error.h>
#include <executorch/runtime/core/result.h>

namespace executorch::extension::llm {
class MultimodalInput;
struct Stats;

struct GenerationConfig {
  bool echo = true;
  std::string grammar;
  std::string grammar_type;
  bool ignore_eos = false;
  int32_t max_new_tokens = -1;
  bool warming = false;
  int32_t seq_len = -1;
  float temperature = 0.8f;
  int32_t num_bos = 0;
  int32_t num_eos = 0;
};

class IRunner {
 public:
  virtual ~IRunner() = default;
  virtual bool is_loaded() const = 0;
  virtual runtime::Error load() = 0;
  virtual runtime::Error generate(
      const std::string& prompt,
      const GenerationConfig& config,
      std::function<void(const std::string&)> token_callback,
      std::function<void(const Stats&)> stats_callback) = 0;
  virtual runtime::Result<uint64_t>
  prefill(const std::vector<MultimodalInput>& inputs, int32_t num_bos = 0, int32_t num_eos = 0) = 0;
  virtual void stop() = 0;
  virtual void reset() = 0;
};

class TextLLMRunner : public IRunner {
 public:
  bool is_loaded() const override;
  runtime::Error load() override;
  runtime::Error generate(
      const std::string& prompt,
      const GenerationConfig& config,
      std::function<void(const std::string&)> token_callback = {},
      std::function<void(const Stats&)> stats_callback = {}) override;
  runtime::Result<uint64_t>
  prefill(const std::vector<MultimodalInput>& inputs, int32_t num_bos = 0, int32_t num_eos = 0) override;
  void stop() override;
  void reset() override;
};
} // namespace executorch::extension::llm
