// An edge bundle answers in C++: opens cascade.onnx, and prints a line for each sample: label, exit, score.
//
//     cascade EDGE_DIR images.f32 [THREADS]
//
// images.f32 holds samples one after the other as raw float32, each (channels, height, width), prepared as `preprocess` in
// the bundle's manifest.json says. Thresholds and temperatures are those of the bundle's policy.json.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace fs = std::filesystem;
using Shape = std::vector<int64_t>;

// All bytes of a file.
std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || fs::is_directory(path)) throw std::runtime_error(path.string() + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

// The numbers of a list in policy.json; "never" stands for infinity. In place of a JSON library, which you may have.
std::vector<float> read_list(const std::string& json, const std::string& key) {
  const std::string expected = "policy.json: " + key + ": expected a list of numbers or \"never\"";
  const std::regex pattern('"' + key + R"("\s*:\s*\[([^\]]*)\])");
  std::smatch list;
  if (!std::regex_search(json, list, pattern)) throw std::runtime_error(expected);
  std::vector<float> values;
  std::istringstream items(list[1]);
  for (std::string item; std::getline(items >> std::ws, item, ',');) {
    item.erase(item.find_last_not_of(" \t\r\n") + 1);
    char* end = nullptr;
    const auto value = static_cast<float>(std::strtod(item.c_str(), &end));
    if (item != "\"never\"" && (item.empty() || *end != 0)) throw std::runtime_error(expected);
    values.push_back(item == "\"never\"" ? std::numeric_limits<float>::infinity() : value);
  }
  return values;
}

// A tensor on the values of a vector, which must live as long as the tensor.
Ort::Value view(std::vector<float>& values, const Shape& shape) {
  static const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  return Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape.data(), shape.size());
}

void answer(const fs::path& bundle, const fs::path& data, int threads) {
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "cascade");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(threads);
  options.AddConfigEntry("session.intra_op.allow_spinning", "0");  // threads that wait leave the processor to others
  Ort::Session session(env, (bundle / "cascade.onnx").c_str(), options);

  // Inputs: samples, thresholds, temperatures. The file says what shape a sample has; the number of samples is free.
  const auto type = session.GetInputTypeInfo(0);
  const auto info = type.GetTensorTypeAndShapeInfo();
  Shape shape = info.GetShape();
  if (session.GetInputCount() != 3 || info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
    throw std::runtime_error("cascade.onnx: takes more than one tensor of float32: this example is for images");
  int64_t per_sample = 1;
  for (size_t i = 1; i < shape.size(); ++i) per_sample *= shape[i];
  const std::string bytes = read_file(data);
  const size_t sample_bytes = static_cast<size_t>(per_sample) * sizeof(float);
  if (bytes.empty() || bytes.size() % sample_bytes != 0)
    throw std::runtime_error(data.string() + ": " + std::to_string(bytes.size()) + " bytes; a sample takes " +
                             std::to_string(sample_bytes));
  std::vector<float> images(bytes.size() / sizeof(float));
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(images.data()));
  shape[0] = static_cast<int64_t>(bytes.size() / sample_bytes);

  const std::string policy = read_file(bundle / "policy.json");
  auto thresholds = read_list(policy, "thresholds"), temperatures = read_list(policy, "temperatures");
  const Ort::Value inputs[] = {view(images, shape), view(thresholds, {static_cast<int64_t>(thresholds.size())}),
                               view(temperatures, {static_cast<int64_t>(temperatures.size())})};

  // Outputs asked for: those printed. probabilities and attention_K are there, too.
  const auto name = session.GetInputNameAllocated(0, Ort::AllocatorWithDefaultOptions());
  const char* given[] = {name.get(), "thresholds", "temperatures"};
  const char* wanted[] = {"labels", "exits", "scores"};
  const auto found = session.Run(Ort::RunOptions(), given, inputs, 3, wanted, 3);
  const auto *labels = found[0].GetTensorData<int64_t>(), *exits = found[1].GetTensorData<int64_t>();
  const auto* scores = found[2].GetTensorData<float>();
  for (int64_t i = 0; i < shape[0]; ++i)
    std::printf("%lld %lld %.7f\n", static_cast<long long>(labels[i]), static_cast<long long>(exits[i]), scores[i]);
}

int main(int count, char** words) try {
  std::cerr.setstate(std::ios::failbit);  // Debian's ONNX Runtime tells there of every operator that it registers twice
  if (count < 3 || count > 4) throw std::runtime_error("usage: cascade EDGE_DIR images.f32 [THREADS]");
  const int threads = count == 4 ? std::atoi(words[3]) : 1;
  if (threads < 1) throw std::runtime_error("THREADS: expected a number from 1 on");
  answer(words[1], words[2], threads);
} catch (const std::exception& error) {
  std::string text = error.what();
  std::replace(text.begin(), text.end(), '\n', ' ');
  std::fprintf(stderr, "cascade: %s\n", text.c_str());
  return 2;
}
