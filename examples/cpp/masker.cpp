// Double Sparsity with one selection per head, for f32, written from docs/SPEC.md, and the process protocol around it, written from
// docs/PROTOCOL.md. C++17 without dependencies, for little-endian machines. Build and check it with
//     c++ -std=c++17 -O2 -o masker masker.cpp
//     doublecheck check --command ./masker
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <vector>
struct Json {
    std::string text;  // a string's characters, or a number or literal as it was written
    std::vector<Json> list; std::map<std::string, Json> fields;
    size_t size() const { return std::stoull(text); }
    const Json& at(const std::string& name) const { return fields.at(name); }
};
struct Parser {
    const std::string& s; size_t i = 0;
    char peek() { while (std::strchr(" \t\r\n,:", s.at(i))) ++i; return s[i]; }
    std::string string() {  // of its escapes those of quotes and backslashes, all that a request holds
        std::string out;
        for (++i; s.at(i) != '"'; ++i) out += s[i] == '\\' ? s.at(++i) : s[i];
        return ++i, out;
    }
    Json value() {
        Json json;
        switch (peek()) {
        case '"': json.text = string(); break;
        case '[': for (++i; peek() != ']';) json.list.push_back(value()); ++i; break;
        case '{': for (++i; peek() != '}';) { auto name = string(); json.fields[name] = value(); } ++i; break;
        default: while (i < s.size() && !std::strchr(",]} \n", s[i])) json.text += s[i++];
        }
        return json;
    }
};
Json parse(const std::string& text) { return Parser{text}.value(); }
using Floats = std::vector<float>;
struct Tensor { std::string type; std::vector<size_t> shape; std::string bytes; };
using Tensors = std::map<std::string, Tensor>;
Floats floats(const Tensor& t) { Floats x(t.bytes.size() / 4); std::memcpy(x.data(), t.bytes.data(), t.bytes.size()); return x; }
template <class T> Tensor tensor(const char* type, std::vector<size_t> shape, const std::vector<T>& x) {
    return {type, shape, std::string(reinterpret_cast<const char*>(x.data()), x.size() * sizeof(T))};
}

Json read_frame(Tensors& tensors) {
    uint64_t lengths[2];  // of what follows, and of the header
    if (std::fread(lengths, 8, 2, stdin) != 2) std::exit(0);
    std::string frame(lengths[0] - 8, 0);
    if (std::fread(&frame[0], 1, frame.size(), stdin) != frame.size()) std::exit(1);
    const Json header = parse(frame.substr(0, lengths[1]));
    for (const auto& [name, entry] : header.fields) {
        if (name == "__metadata__") continue;
        const auto& ends = entry.at("data_offsets").list;
        tensors[name] = {entry.at("dtype").text, {}, frame.substr(lengths[1] + ends[0].size(), ends[1].size() - ends[0].size())};
        for (const Json& size : entry.at("shape").list) tensors[name].shape.push_back(size.size());
    }
    return parse(header.at("__metadata__").at("doublecheck").text);
}

void write_frame(const std::string& message, const Tensors& tensors = {}) {
    std::string header = "{\"__metadata__\":{\"doublecheck\":\"", data;
    for (char c : message) header += c == '"' ? std::string("\\\"") : std::string(1, c);
    header += "\"}";
    for (const auto& [name, t] : tensors) {
        header += ",\"" + name + "\":{\"dtype\":\"" + t.type + "\",\"shape\":[" + std::to_string(t.shape[0]);
        for (size_t j = 1; j < t.shape.size(); ++j) header += "," + std::to_string(t.shape[j]);
        header += "],\"data_offsets\":[" + std::to_string(data.size()) + ",";
        header += std::to_string((data += t.bytes).size()) + "]}";
    }
    const uint64_t lengths[] = {9 + header.size() + data.size(), header.size() + 1};
    std::fwrite(lengths, 8, 2, stdout);
    std::fwrite((header + "}" + data).data(), 1, header.size() + 1 + data.size(), stdout);
    std::fflush(stdout);
}

// The r channels of one position (SPEC 2.4), quantised where B is below 16 (SPEC 2.5).
void label(const float* x, const Json& row, size_t r, const Json& settings, float* out) {
    const size_t bits = settings.at("label_bits").size();
    for (size_t j = 0; j < r; ++j) out[j] = x[row.list.at(j).size()];
    const float lo = *std::min_element(out, out + r), hi = *std::max_element(out, out + r), top = float((1 << bits) - 1);
    const float scale = 1 / (hi == lo ? 1 : hi - lo) * top;
    for (size_t j = 0; j < r && bits < 16; ++j)
        out[j] = std::min(std::max(std::nearbyint((out[j] - lo) * scale), 0.0f), top) / scale + lo;
}

Tensors attention(const Json& instance, const Json& call, Tensors& in) {
    in.try_emplace("attention_mask", tensor("F32", {1, 1, 1, 1}, Floats{0}));
    const auto &qs = in["q"].shape, &ks = in["k"].shape, &as = in["attention_mask"].shape;
    const size_t b = qs[0], h = qs[1], m = qs[2], d = qs[3], hk = ks[1], n = ks[2], dv = in["v"].shape[3];
    const Json& settings = instance.at("settings");
    const size_t r = d / settings.at("group_factor").size(), heavy = std::min(n, settings.at("heavy_size").size());
    const std::string name = "model.layers." + call.at("layer").text + ".self_attn." + instance.at("channel_selection").text;
    const auto rows = parse(instance.at("channel_file").text).at(name).list;
    const bool causal = call.at("causal").text == "true";
    const Floats q = floats(in["q"]), k = floats(in["k"]), v = floats(in["v"]), a = floats(in["attention_mask"]);
    const float scaling = std::stof(call.at("scaling").text), none = -INFINITY;
    Floats ql(b * h * m * r), kl(b * h * n * r), output(b * h * m * dv), s(n), w(n);
    std::vector<int32_t> selected(b * h * m * heavy, -1);
    for (size_t bh = 0; bh < b * h; ++bh) {
        const size_t head = bh % h, kv = bh / h * hk + head / (h / hk);
        const Json& row = rows[head / (h / rows.size())];
        for (size_t j = 0; j < n; ++j) label(&k[(kv * n + j) * d], row, r, settings, &kl[(bh * n + j) * r]);
        for (size_t i = 0; i < m; ++i) {
            const size_t query = bh * m + i;
            label(&q[query * d], row, r, settings, &ql[query * r]);
            std::vector<size_t> keys;
            for (size_t j = 0; j < n; ++j) {
                const size_t at[] = {bh / h, head, i, j};
                size_t index = 0;  // in A, whose dimensions of 1 are broadcast
                for (size_t x = 0; x < 4; ++x) index = index * as[x] + at[x] % as[x];
                const float add = causal && j > n - m + i ? none : a[index];
                s[j] = std::inner_product(&ql[query * r], &ql[query * r] + r, &kl[(bh * n + j) * r], 0.0f) / std::sqrt(float(r)) + add;
                w[j] = std::inner_product(&q[query * d], &q[query * d] + d, &k[(kv * n + j) * d], 0.0f) * scaling + add;
                if (s[j] != none) keys.push_back(j);
            }
            std::stable_sort(keys.begin(), keys.end(), [&](size_t x, size_t y) { return s[x] > s[y]; });
            keys.resize(std::min(keys.size(), heavy));
            std::sort(keys.begin(), keys.end());
            std::copy(keys.begin(), keys.end(), &selected[query * heavy]);
            float most = none, sum = 0;
            for (size_t j : keys) most = std::max(most, w[j]);
            for (size_t j : keys) sum += w[j] = w[j] == none ? 0 : std::exp(w[j] - most);
            for (size_t j : keys)
                for (size_t c = 0; c < dv; ++c) output[query * dv + c] += sum > 0 ? w[j] / sum * v[(kv * n + j) * dv + c] : 0;
        }
    }
    return {{"selected", tensor("I32", {b, h, m, heavy}, selected)}, {"output", tensor("F32", {b, h, m, dv}, output)},
            {"q_labels", tensor("F32", {b, h, m, r}, ql)}, {"k_labels", tensor("F32", {b, h, n, r}, kl)}};
}

int main() {
    for (Json instance;;) {
        Tensors tensors;
        const Json message = read_frame(tensors);
        const std::string type = message.at("type").text;
        const std::string id = message.fields.count("id") ? ",\"id\":" + message.at("id").text + "}" : "}";
        if (type == "bye") return 0;
        if (type == "hello") write_frame(
            R"({"type":"hello","protocol":1,"name":"C++","model":{"labels":"exact","kept":"f32","accumulation":"f32"},"dtypes":["f32"],)"
            R"("heads":["per-head"],"domain":{"head_dim":{"to":128,"multiple_of":4},"keys":{"to":4096},"batch":{"to":4}},)"
            R"("lacks":["previous","earlier_maskers","fractions","dense_fallback","dense_layers","refusals"]})");
        else if (type == "configure") { instance = message; write_frame("{\"type\":\"configured\"" + id); }
        else if (type == "mask") write_frame("{\"type\":\"answer\"" + id, attention(instance, message, tensors));
        else write_frame("{\"type\":\"failed\",\"message\":\"an unknown type of message\"" + id);
    }
}
