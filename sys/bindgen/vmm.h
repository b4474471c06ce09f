/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * What vmm-sys needs of FreeBSD's headers: the ABI of vmm(4) on amd64 and that
 * of vmm_vnode(4).
 */

#include <sys/param.h>
#include <sys/types.h>
#include <sys/ioccom.h>

#include <machine/vmm.h>
#include <machine/vmm_dev.h>
#include <machine/vmm_snapshot.h>

#include "vmmctl.h"
#include "vmm_vnode.h"
