// Slow and plain twin of attention.cpp and attention_exact.cpp, in double: softmax over the keys that a query may see,
// then the weighted sum of their values. No pages: keys and values as they are appended.
#include <cmath>

#include "bridge.h"

// q, out: (n_tokens, n_heads, head_dim), the newest tokens; k, v: (n_keys, n_kv_heads, head_dim); seen: (n_tokens, n_keys),
// 0 where the query does not see the key. softcap 0 = none.
INLAY_EXPORT(reference_attend)
void reference_attend(const float* q, const float* k, const float* v, const uint8_t* seen, double* out, int n_tokens,
                      int n_keys, int n_heads, int n_kv_heads, int head_dim, double scale, double softcap) {
  for (int t = 0; t < n_tokens; t++)
    for (int h = 0; h < n_heads; h++) {
      const int row = (t * n_heads + h) * head_dim;
      const int kv_head = h / (n_heads / n_kv_heads);
      auto score = [&](int key) {
        double x = 0;
        for (int c = 0; c < head_dim; c++) x += double(q[row + c]) * k[(key * n_kv_heads + kv_head) * head_dim + c];
        x *= scale;
        return softcap > 0 ? softcap * tanh(x / softcap) : x;
      };
      double max = -INFINITY, sum = 0;
      for (int key = 0; key < n_keys; key++)
        if (seen[t * n_keys + key]) max = fmax(max, score(key));
      for (int c = 0; c < head_dim; c++) out[row + c] = 0;
      for (int key = 0; key < n_keys; key++) {
        if (!seen[t * n_keys + key]) continue;
        const double weight = exp(score(key) - max);
        sum += weight;
        for (int c = 0; c < head_dim; c++) out[row + c] += weight * v[(key * n_kv_heads + kv_head) * head_dim + c];
      }
      for (int c = 0; c < head_dim; c++) out[row + c] /= sum;
    }
}
