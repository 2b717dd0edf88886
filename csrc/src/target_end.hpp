// Ends the target pragma that a file of one instruction set began.

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
