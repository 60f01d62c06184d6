// Layers with packed low-bit weights: the whole interface of the library, plain C.
//
// A weight is a matrix of n rows (outputs) and k columns (inputs), of codes u in 0 … 2^bits − 1:
//
//   integers  w[i][j] = scale[i][j / group] · (u[i][j] − zero[i][j / group])
//   tables    w[i][j] = scale[i][j / group] · table[t(i)][u[i][j]]
//
// It is packed once for the machine it runs on; a packed weight is of no use elsewhere, and
// `bsk_unpack` gives back what was packed, bit for bit. Nothing here allocates what it returns.
#ifndef BITSMITH_KERNELS_H
#define BITSMITH_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define BSK_VERSION 2

// What can go wrong; every function that returns an int returns 0 or one of these.
enum {
  BSK_OK = 0,
  BSK_BAD_WEIGHT = -1,   // no such kind, width, size or group
  BSK_BAD_CODES = -2,    // a code or zero point out of range
  BSK_BAD_SCALE = -3,    // a scale or table entry is not finite
  BSK_BAD_PACKED = -4,   // packed bytes of another weight, machine or version
  BSK_BAD_INPUT = -5,    // a size below 0, or a pointer that is missing
  BSK_BAD_INDEX = -6,    // a row that an embedding does not have
  BSK_NO_MEMORY = -7,
  BSK_UNSUPPORTED = -8,  // a weight that this library leaves to others
  BSK_NOT_FINITE = -9,   // a row of x has NaN or infinite values, and no int8 codes
};

enum { BSK_INTEGER = 0, BSK_TABLE = 1 };
enum { BSK_FLOAT32 = 0, BSK_FLOAT16 = 1, BSK_BFLOAT16 = 2 };

// What the rows of x are multiplied as.
enum {
  BSK_ROWS_FLOAT = 0,   // float32 (half types are widened)
  BSK_ROWS_INT8 = 1,    // each row as int8 codes with a scale of its own
  BSK_ROWS_LOOKUP = 2,  // not multiplied but looked up: each row by itself (bsk_weight only)
};

// Instruction sets, in rising order; a machine has all up to its own of one family.
enum { BSK_PORTABLE = 0, BSK_AVX2 = 1, BSK_AVX512 = 2, BSK_AMX = 3, BSK_NEON = 8 };

typedef struct {
  int32_t kind;     // BSK_INTEGER or BSK_TABLE
  int32_t bits;     // 1 to 8: width of a code
  int64_t n, k;     // rows (outputs), columns (inputs)
  int64_t group;    // columns that share a scale; divides k; k itself for one scale a row
  int64_t tables;   // tables: 1 (one for all) or n (one a row); 0 for integers
  int32_t entries;  // of a table: 2^bits at most; 0 for integers
  int32_t rows;     // BSK_ROWS_…: what it will mostly be multiplied with (decides the layout)
} bsk_weight;

int bsk_version(void);

// The best instruction set of this machine, and the one in use.
int bsk_machine(void);
int bsk_in_use(void);
// Use another one from now on (weights have to be packed anew); BSK_UNSUPPORTED if not here.
int bsk_use(int instructions);

// Run on the OpenMP threads that are there already: the address of libgomp's GOMP_parallel;
// null: a pool of its own.
void bsk_use_gomp(void* gomp_parallel);

// Bytes of the packed form (its start must lie on 64 bytes), or a negative error.
int64_t bsk_packed_bytes(const bsk_weight* weight);

// Bytes of what `bsk_pack` wrote, `bsk_packed_bytes` at most: the rest may be cut off.
int64_t bsk_packed_used(const bsk_weight* weight, const void* packed);

// Ask for large pages, where the system has them, before memory for a packed weight is written:
// reading it then takes fewer look-ups of addresses.
void bsk_large_pages(void* memory, int64_t bytes);

// codes [n][k], one a byte; scale [n][k/group]; zero [n][k/group], null: all `zero_all`;
// table [tables][entries], null for integers.
int bsk_pack(const bsk_weight* weight, const uint8_t* codes, const float* scale,
             const int32_t* zero, int32_t zero_all, const float* table, void* packed);

// The inverse; any of the outputs may be null.
int bsk_unpack(const bsk_weight* weight, const void* packed, uint8_t* codes, float* scale,
               int32_t* zero, float* table);

// y[m][n] = x[m][k] · wᵀ + bias[n] (null: none). `packed_bytes`: what there is, which has to be what
// the weight takes. `type` is that of x and y; strides in elements between rows, the elements of a
// row lie side by side. `rows` is BSK_ROWS_…; `threads` at most.
int bsk_linear(const bsk_weight* weight, const void* packed, int64_t packed_bytes, int type,
               const void* x, int64_t m, int64_t x_stride, const float* bias, void* y,
               int64_t y_stride, int rows, int threads);

// y[count][k] = rows `index` of the weight.
int bsk_embedding(const bsk_weight* weight, const void* packed, const int64_t* index,
                  int64_t count, int type, void* y, int threads);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
